"""What a stream cannot encode is printed as an escape: no answer and no error message is lost to it."""

import io
import os
import subprocess
import sys

import pytest
from PIL import Image

from sparse_mlp_ds.log import streams
from tests.helpers import version_0_1_0

STRICT = ({"PYTHONIOENCODING": "ascii:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
          {"PYTHONIOENCODING": "utf-8:strict"})  # fmt: skip


def test_any_text_is_accepted(monkeypatch):
    output, errors = (io.TextIOWrapper(io.BytesIO(), "ascii", errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    streams.accept_any_text()
    print("Löwe \udce9")
    print("café", file=sys.stderr)
    output.flush(), errors.flush()
    assert output.buffer.getvalue() == b"L\\xf6we \\udce9\n" and errors.buffer.getvalue() == b"caf\\xe9\n"


@pytest.mark.parametrize("stream", [None, io.StringIO()], ids=["closed", "put in its place"])
def test_a_stream_that_cannot_be_changed_is_left_alone(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    streams.accept_any_text()


@pytest.mark.parametrize("environment", STRICT, ids=lambda environment: " ".join(environment.values()))
def test_names_of_files_do_not_cost_the_answers(tmp_path, environment):
    names = ["Löwe.png", "\u4e2d.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    command = [sys.executable, "-m", "sparse_mlp_ds.cli.main", "predict", str(version_0_1_0.EXPORT)]
    command += [str(tmp_path / name) for name in names]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(b"\n", b"").count(b".png") == 3, done.stdout
