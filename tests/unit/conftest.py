"""Fixtures of several files."""

import sys

import pytest

from sparse_mlp_ds.cli import main


@pytest.fixture
def shards(monkeypatch, capsys):
    """Call `sparse-mlp-ds shards` with arguments; returns exit code, lines said, and lines of complaint."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparse-mlp-ds", "shards", *map(str, arguments)])
        try:
            main.main()
            code = 0
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return call
