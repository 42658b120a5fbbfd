"""A terminal is closed under a run, as when an ssh session is lost, or Ctrl-C is typed in it: the run saves, ends, and
can be continued."""

import os
import pty
import select
import signal
import sys
import time

import psutil
import pytest

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.distributed import processes
from tests.helpers.launcher import DEEPSPEED, MOE, REPOSITORY, Launch, _port, small_recipe
from tests.helpers.processes import agents_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
BOUND = 60
"""Seconds from the end of the terminal to the end of the last process, in which a step and a checkpoint are made."""
STARTS = {
    "deepspeed": lambda ranks: [str(DEEPSPEED), "--num_gpus", str(ranks), "--master_port", str(_port())],
    "python": lambda ranks: [sys.executable],
}


class Terminal:
    """A command in the foreground of a terminal of its own; nothing of it is left."""

    def __init__(self, folder, command):
        self.text, self.family = "", {}
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            for ignored in (signal.SIGHUP, signal.SIGINT):  # by whoever runs the tests under nohup
                signal.signal(ignored, signal.SIG_DFL)
            os.chdir(folder)
            os.environ["PYTHONPATH"] = str(REPOSITORY)
            os.execvp(command[0], command)

    def __enter__(self):
        return self

    def read_until(self, text, times):
        """Read what is printed until a text was there so often."""
        deadline = time.monotonic() + 300
        while self.text.count(text) < times:
            assert time.monotonic() < deadline, self.text
            if select.select([self._terminal], [], [], 0.5)[0]:
                self.text += os.read(self._terminal, 1 << 16).decode(errors="replace")
        for one in psutil.process_iter():
            self.family |= {one.pid: one} if self._is_own(one) else {}
        self.family |= {one.pid: one for one in agents_of(self.family)}

    def _is_own(self, one):
        return one.pid == self.process or self.process in [parent.pid for parent in processes.parents(one)]

    def close(self):
        os.close(self._terminal)

    def type_ctrl_c(self):
        os.write(self._terminal, b"\x03")

    def all_ended(self):
        """Wait until no process is left."""
        deadline, reaped = time.monotonic() + BOUND, False
        while left := [one for one in self.family.values() if processes.runs(one)]:
            assert time.monotonic() < deadline, left
            if not reaped:
                reaped = os.waitpid(self.process, os.WNOHANG)[0] != 0
            time.sleep(0.1)

    def __exit__(self, *exception):
        for one in self.family.values():
            if processes.runs(one):
                processes.send(one)
        try:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


@pytest.mark.parametrize("action", ["close", "type_ctrl_c"])
@pytest.mark.parametrize(("start", "ranks"), [("deepspeed", 2), ("python", 1)])
def test_a_lost_terminal(tmp_path, start, ranks, action):
    small_recipe(tmp_path, epochs=1000)
    arguments = ["--recipe", "small.yaml", "--ds_config", MOE, "--out", "run"]
    with Terminal(tmp_path, [*STARTS[start](ranks), str(REPOSITORY / "train.py"), *arguments]) as terminal:
        terminal.read_until("img/s", 3)
        getattr(terminal, action)()
        started = time.monotonic()
        terminal.all_ended()
        print(f"ended after {time.monotonic() - started:.1f} s")
    newest, passed_over = manifest.newest(tmp_path / "run/checkpoints")
    assert newest and not passed_over
    step = newest.manifest["step"]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == step, "no record is missing"
    if (start, ranks, action) == ("deepspeed", 2, "close"):
        with Launch(tmp_path, *arguments, "--set", f"train.max_steps={step + 2}", ranks=ranks) as launch:
            assert launch.wait() == 0, launch.output()
            assert f"resuming from run/checkpoints/step_{step}" in launch.output()
