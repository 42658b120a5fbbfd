"""Reads and processes that hang: they are named, they end within the limit, a signal ends them, nothing is left.

A named pipe that nobody writes stands for a file whose server is gone: to open or to read it never returns.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.made_checkpoints import recipe, save
from tests.helpers.processes import ended
from tests.helpers.tars import write_tar

pytestmark = pytest.mark.timeout(400)
LIMIT = 4.0
BOUND = 150
"""Seconds from the start of a command to its end: its imports take most of them on a busy machine."""

BEGIN = f"""
import os, sys
from pathlib import Path
from sparse_mlp_ds.cli.main import main
from sparse_mlp_ds.data import reads
reads.set_limit({LIMIT})
"""
LOAD = """
from sparse_mlp_ds.data import index as index_file, loader
from sparse_mlp_ds.data.order import evaluation_batches
from sparse_mlp_ds.errors import RunError
index = index_file.load(Path("val"))
os.unlink("val/some-000000.tar")
os.mkfifo("val/some-000000.tar")
try:
    list(loader.load(loader.ShardDataset(index, 8, 5), evaluation_batches(len(index), 0, 1, 4), workers))
except RunError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
MAKE = """
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import writer
from sparse_mlp_ds.shards.raw_datasets import RawImage, Split
if __name__ == "__main__":
    os.mkfifo("pipe")
    try:
        split = Split("", ["a"], [RawImage("k", 0, "pipe", 0, 9)])
        writer.write(Path("out"), "t", split, writer.Options(), workers, writer.Node(), lambda done, total: None)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
"""


@dataclass
class Case:
    """A command that hangs."""

    code: str
    """What it does, in a folder with the shards val/ and the checkpoint of a model."""
    said: str
    """A pattern of its line about the hang."""


READS = {
    "a loader process": Case(
        "workers = 2" + LOAD, r"loader process [01] \(process \d+\): val/some-000000.tar: a read has not returned for"
    ),
    "the loader without processes": Case("workers = 0" + LOAD, "val/some-000000.tar: a read has not returned for"),
    "shards make": Case("workers = 1" + MAKE, r"process \d+: pipe: a read has not returned for"),
    "shards make without processes": Case("workers = 0" + MAKE, "error: pipe: a read has not returned for"),
    "shards index": Case(
        "os.mkfifo('val/other.tar'); main(['shards', 'index', 'val'])", "val/other.tar: a read has not returned for"
    ),
    "predict": Case(
        "os.mkfifo('image'); main(['predict', 'run/checkpoints/step_6', 'image'])", "image: a read has not returned for"
    ),
}


@pytest.fixture
def folder(tmp_path):
    checkpoint = save(tmp_path, recipe=recipe())
    target = tmp_path / "run/checkpoints/step_6"
    if checkpoint != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.rename(target)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "png")
    (tmp_path / "val").mkdir()
    members = [part for n in range(12) for part in ((f"{n:03d}.png", buffer.getvalue()), (f"{n:03d}.cls", b"0"))]
    write_tar(tmp_path / "val/some-000000.tar", *members)
    make_index(tmp_path / "val", ["ant", "bee", "cat", "dog", "elk"])
    return tmp_path


def _wait_channel(pid):
    try:
        return Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return ""


class Command:
    """A running command and all the processes that it starts; none is left."""

    def __init__(self, folder, code):
        (folder / "command.py").write_text(BEGIN + code)
        self.output, self.family = folder / "output", {}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "command.py"], cwd=folder, stdout=output, stderr=output, start_new_session=True
            )

    def __enter__(self):
        return self

    def look(self):
        """Note the processes that there are now."""
        try:
            for one in psutil.Process(self.process.pid).children(recursive=True):
                self.family[one.pid] = one
        except psutil.NoSuchProcess:
            return

    def hangs(self):
        """Say whether one of the processes waits in the opening of a named pipe."""
        self.look()
        return any("wait_for_partner" in _wait_channel(pid) for pid in (self.process.pid, *self.family))

    def wait(self):
        """Return the exit code, when everything has ended."""
        deadline = time.monotonic() + BOUND
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output.read_text()
            self.look()
            time.sleep(0.05)
        assert ended(self.family), "processes are left"
        return self.process.returncode

    def __exit__(self, *exception):
        for one in [self.process, *self.family.values()]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


SHORT = ("a loader process", "predict")
"""Cases that `make test` runs; the others take as long and end in the same way."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in READS])
def test_a_read_that_never_returns_is_named_and_ends_the_command(folder, name):
    with Command(folder, READS[name].code) as command:
        assert command.wait() == 1
        said = command.output.read_text()
    assert len(re.findall(READS[name].said + r" \d+ s", said)) >= 1, said
    assert "Traceback" not in said


EVALUATE = """
from sparse_mlp_ds.data.samples import SampleReader
slowly = SampleReader.read
def read(self, sample):
    import os, pathlib, time
    pathlib.Path(f"reads-{os.getpid()}").touch()
    time.sleep(0.5)
    return slowly(self, sample)
SampleReader.read = read
main(["evaluate", "run/checkpoints/step_6", "val", "--workers", "2", "--batch-size", "1"])
"""
"""`evaluate` from a slow disk, so that there is time to stop one of its loader processes; each says that it reads."""


def stopped_loader(folder, command):
    """Stop the second loader process of `evaluate`, once it reads, with SIGSTOP and return its number."""
    deadline = time.monotonic() + BOUND
    while len(reading := sorted(folder.glob("reads-*"))) < 2:
        assert command.process.poll() is None and time.monotonic() < deadline, command.output.read_text()
        time.sleep(0.02)
    command.look()
    loader = max(int(path.name.removeprefix("reads-")) for path in reading)
    os.kill(loader, signal.SIGSTOP)
    return loader


def test_a_stopped_loader_process_is_named_and_ends_the_command(folder):
    with Command(folder, EVALUATE) as command:
        loader = stopped_loader(folder, command)
        assert command.wait() == 1
        said = command.output.read_text()
    where = rf"error: loader process 1 of 2 \(process {loader}\) has not moved for \d+ s \(it is stopped\)"
    assert re.search(where, said), said
    assert "Traceback" not in said


SIGNALS = {
    ("a stopped loader", signal.SIGTERM): -signal.SIGTERM,
    ("a stopped loader", signal.SIGINT): 128 + signal.SIGINT,
    ("a read", signal.SIGTERM): -signal.SIGTERM,
    ("a read", signal.SIGINT): 128 + signal.SIGINT,
    ("shards make", signal.SIGTERM): -signal.SIGTERM,
}
"""What hangs, the signal, and the exit code."""
HANGS = {"a stopped loader": EVALUATE, "a read": READS["predict"].code, "shards make": READS["shards make"].code}


@pytest.mark.long
@pytest.mark.parametrize("name, number", SIGNALS)
def test_a_signal_ends_a_command_that_hangs(folder, name, number):
    with Command(folder, "reads.set_limit(300)\n" + HANGS[name]) as command:
        if name == "a stopped loader":
            stopped_loader(folder, command)
        deadline = time.monotonic() + BOUND
        while name != "a stopped loader" and not command.hangs():
            assert command.process.poll() is None and time.monotonic() < deadline, command.output.read_text()
            time.sleep(0.1)
        os.kill(command.process.pid, number)
        assert command.wait() == SIGNALS[name, number], command.output.read_text()
        assert "Traceback" not in command.output.read_text()


def test_a_slow_read_that_goes_on_is_left_alone(folder):
    """One megabyte of a tar in pieces, for longer than the limit."""
    code = f"""
import threading, time
os.mkfifo("slow")
def feed():
    with open("slow", "wb", buffering=0) as pipe:
        for _ in range({int(3 * LIMIT)}):
            pipe.write(bytes(1000))
            time.sleep(0.5)
threading.Thread(target=feed, daemon=True).start()
with reads.reading("slow"), open("slow", "rb") as file:
    print(len(file.read()))
"""
    with Command(folder, code) as command:
        assert command.wait() == 0
        assert command.output.read_text() == f"{int(3 * LIMIT) * 1000}\n"
