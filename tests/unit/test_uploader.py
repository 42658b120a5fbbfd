"""The process that uploads: it never holds up the trainer, says what is wrong, and ends with the trainer."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from sparse_mlp_ds.checkpoints import writer
from sparse_mlp_ds.checkpoints.uploader import Uploader
from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.distributed import processes

pytestmark = pytest.mark.timeout(120)


def save(run, step):
    pieces = [Piece("param/weight", (6,), 0, torch.full((6,), float(step)))]
    about = {"progress": {"step": step}, "recipe": {"checkpoint": {"keep": 9}}}
    writer.save(run / "checkpoints", step, pieces, about)


def wait_until(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def uploads(store, starter=None):
    """The one process that uploads to the store; pytest's process has other children too."""
    (process,) = (child for child in psutil.Process(starter).children() if store.url in processes.command(child))
    return process


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", 2)
    return tmp_path / "run"


def test_it_uploads_at_the_start_when_told_and_at_the_end(store, run):
    said = []
    uploader = Uploader(run, store.url, said.append)
    wait_until(lambda: "checkpoints/step_2/manifest.json" in store.names())
    save(run, 4)
    uploader.look()
    wait_until(lambda: "checkpoints/step_4/manifest.json" in store.names())
    (run / "summary.json").write_text("{}")
    uploader.finish(60)
    assert store.content("summary.json") == b"{}"
    assert [line for line in said if "waiting" not in line] == []


def test_an_upload_that_is_stuck_holds_up_nobody_and_the_end_waits_for_a_while(store, run):
    said = []
    store.hold("PUT */step_2/*")
    uploader = Uploader(run, store.url, said.append)
    assert store.arrived.wait(60)
    before = time.monotonic()
    for _ in range(100_000):  # more than a pipe holds
        uploader.look()
    assert time.monotonic() - before < 10
    process = uploads(store)
    before = time.monotonic()
    uploader.finish(3)
    assert 3 <= time.monotonic() - before < 10 and not process.is_running()
    assert said == [
        f"waiting for the upload to {store.url}, at most 3 s",
        f"WARNING: the upload to {store.url} was not finished after 3 s; upload the rest with: "
        f"sparse-mlp-ds checkpoint mirror {run}",
    ]


def test_a_failure_is_told_once_for_each_checkpoint_and_tried_again(store, run):
    said = []
    store.refused = "PUT */checkpoints/*"
    uploader = Uploader(run, store.url, said.append)
    wait_until(lambda: len(said) == 1)
    save(run, 4)
    uploader.look()
    wait_until(lambda: len(said) == 2)
    assert all(line.startswith(f"WARNING: {store.url}: ") and "not you" in line for line in said)
    assert all(line.endswith("it is tried again with the next checkpoint") for line in said)
    store.refused = ""
    save(run, 6)
    uploader.look()
    wait_until(lambda: len(said) == 3)
    assert said[2] == f"{store.url}: holds all checkpoints of the run again"
    assert {f"checkpoints/step_{step}/manifest.json" for step in (2, 4, 6)} <= set(store.names())
    uploader.finish(60)


def test_a_process_that_was_killed_is_started_again(store, run):
    said = []
    uploader = Uploader(run, store.url, said.append)
    wait_until(lambda: "checkpoints/step_2/manifest.json" in store.names())
    uploads(store).kill()
    wait_until(lambda: said)
    assert "the process that uploads has ended (exit code -9)" in said[0]
    save(run, 4)
    uploader.look()
    wait_until(lambda: "checkpoints/step_4/manifest.json" in store.names())
    uploader.finish(60)
    assert len([line for line in said if "waiting" not in line]) == 1


TRAINER = """
import sys, time
from pathlib import Path
from sparse_mlp_ds.checkpoints.uploader import Uploader
uploader = Uploader(Path(sys.argv[1]), sys.argv[2], print)
print("started", flush=True)
time.sleep(600)
"""


def test_it_ends_when_the_trainer_is_killed_in_mid_upload(store, run):
    store.hold("PUT */step_2/*")
    with subprocess.Popen([sys.executable, "-c", TRAINER, run, store.url], stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout.readline() == b"started\n" and store.arrived.wait(60)
        process = uploads(store, trainer.pid)
        os.kill(trainer.pid, signal.SIGKILL)
        process.wait(20)
    assert "checkpoints/step_2/manifest.json" not in store.names()


def test_it_is_ended_where_the_run_fails_and_the_process_goes_on(store, run):
    """In a notebook."""
    said = []
    store.hold("PUT */step_2/*")
    uploader = Uploader(run, store.url, said.append)
    assert store.arrived.wait(60)
    process = uploads(store)
    uploader.close()
    wait_until(lambda: not processes.runs(process), 20)
    assert said == []
