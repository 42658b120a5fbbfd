"""One process trains: a hang is noticed, named and ended, and SIGTERM ends it; nothing stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes import agents_of, ended

pytestmark = pytest.mark.timeout(180)
LIMIT = 6
HERE = re.escape(socket.gethostname())

RANK = """
import os, sys, time
from pathlib import Path
from sparse_mlp_ds.train import main
limit, folder, fault = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def run(job, watch):
    from sparse_mlp_ds import files
    from sparse_mlp_ds.data.reads import reading
    from sparse_mlp_ds.errors import StoppedError
    from sparse_mlp_ds.train.stop_request import StopRequest
    stop, phase = StopRequest(folder), "evaluate" if fault == "read in evaluation" else "data"
    for step in range(1, 10**6):
        watch.at(phase, "train", step)
        files.replace(folder / "step", str(step))
        if step == 20 and fault == "call":
            time.sleep(100)
        if step == 20 and fault.startswith("read"):
            with reading(str(folder / "pipe")):
                (folder / "pipe").open()
        if step == 20 and fault == "none":
            return
        watch.at("stop")
        if stop.agreed():
            raise StoppedError("stopped")
        time.sleep(0.02)

class Job:
    compiles = False
    class recipe:
        class train:
            timeout_seconds = limit
        class checkpoint:
            mirror = None

from sparse_mlp_ds.train import loop, preflight
preflight.check, loop.run = lambda job: None, lambda job, watch, opened: run(job, watch)
try:
    main._train(Job, None, None)
except tuple(main.EXIT_CODES) as error:
    sys.exit(main._leave(error))
"""
"""What train.py does between joining the process group and its end, with steps that do next to nothing."""


class Rank:
    """One such process, with its agent; leaves none."""

    def __init__(self, folder: Path, fault: str):
        self.folder, self.output = folder, folder / "output"
        os.mkfifo(folder / "pipe")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RANK, str(LIMIT), str(folder), fault], stdout=output, stderr=output,
                env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            )  # fmt: skip

    def __enter__(self):
        deadline = time.monotonic() + 120
        while not (self.folder / "step").exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.1)
        (self.agent,) = [one.pid for one in agents_of([self.process.pid])]
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        assert ended([self.agent]), "the agent stays"

    def text(self) -> str:
        return self.output.read_text()


@pytest.mark.parametrize("fault", ["call", "read", "read in evaluation"])
@pytest.mark.parametrize("asked", [False, True], ids=["", "SIGTERM"])
def test_a_hang_is_named_and_ends_within_the_limit(tmp_path, fault, asked):
    with Rank(tmp_path, fault) as rank:
        while (tmp_path / "step").read_text() != "20":
            time.sleep(0.05)
        if asked:
            rank.process.terminate()
        assert rank.process.wait(5 * LIMIT) == 1
        text = rank.text()
    (line,) = [line for line in text.splitlines() if line.startswith("FAILED FIRST")]
    phase = "evaluate" if fault == "read in evaluation" else "data"
    where = rf"FAILED FIRST: rank 0 on {HERE} at step 20 of stage train, in {phase}: "
    if fault == "call":
        assert re.match(where + r"no progress for \d+ s: .* raise train.timeout_seconds", line)
        assert 'File "<string>"' in text, "the stack is missing"
    else:
        assert re.match(where + rf"{tmp_path}/pipe: a read has not returned for \d+ s", line)
    assert text.count("SIGTERM, stopping after this step") == asked


def test_sigterm_stops_a_rank_that_goes_on(tmp_path):
    with Rank(tmp_path, "goes on") as rank:
        rank.process.terminate()
        assert rank.process.wait(60) == 85
        assert "FAILED" not in rank.text()


def test_a_stopped_rank_is_its_users_affair(tmp_path):
    """Ctrl-Z, for longer than the limit."""
    with Rank(tmp_path, "goes on") as rank:
        rank.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * LIMIT)
        rank.process.send_signal(signal.SIGCONT)
        step = int((tmp_path / "step").read_text())
        time.sleep(3)
        assert int((tmp_path / "step").read_text()) > step and rank.process.poll() is None
        rank.process.terminate()
        assert rank.process.wait(60) == 85


def test_an_end_in_peace_and_a_death_leave_no_agent(tmp_path):
    for fault, code in (("none", 0), ("goes on", -9)):
        (tmp_path / fault).mkdir()
        with Rank(tmp_path / fault, fault) as rank:
            if code:
                rank.process.kill()
            assert rank.process.wait(60) == code
            assert ended([rank.agent])
