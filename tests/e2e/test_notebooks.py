"""The notebooks: every cell runs, in a folder of their own."""

import os
from pathlib import Path

import pytest

from tests.helpers.launcher import DEEPSPEED, REPOSITORY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{DEEPSPEED.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [output.get("text", "") for cell in book.cells for output in cell.get("outputs", [])]
    assert texts and not any("error: " in text for text in texts), "".join(texts)


def test_there_are_three():
    assert len(NOTEBOOKS) == 3
