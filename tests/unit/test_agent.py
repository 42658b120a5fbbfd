"""The agent of the watchdog as a program: it must start at once and stay small."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from sparse_mlp_ds.watchdog import client

LARGE = {"torch", "deepspeed", "numpy", "pydantic", "yaml"}


@pytest.mark.parametrize("module", ["sparse_mlp_ds.watchdog.agent", "sparse_mlp_ds.doctor.__main__"])
def test_a_process_that_must_start_at_once_loads_nothing_large(module):
    """Neither its own imports nor those of the packages that it lies in."""
    code = f"import sys, {module}; print(*sorted({LARGE} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


WATCHED = """
import fcntl, sys, termios, time
from pathlib import Path
from sparse_mlp_ds.watchdog import client
with client.watch(60) as watch:
    watch.at("data", "train", 1)
    log = Path(sys.argv[1])
    watch.begin_run(log.parent, log, [])
    while fcntl.ioctl(watch._agent.socket, termios.TIOCOUTQ, bytes(4)) != bytes(4):  # what the agent has not read
        time.sleep(0.01)
    print("watched", flush=True)
    sys.stdin.readline()
    watch._agent.socket.sendall(b"this is no record\\n")
    time.sleep(60)
"""


def _ends(act, log=os.devnull) -> tuple[int, int, list[str]]:
    """Have a single rank watched and `act(rank, pid)` done; return pid, exit code and the lines on standard error."""
    rank = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(log)], stdin=-1, stdout=-1, stderr=-1, text=True,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    )  # fmt: skip
    try:
        assert rank.stdout.readline() == "watched\n"
        pid = next(
            int(line) for line in os.listdir("/proc") if line.isdecimal() and f'"pid": {rank.pid},' in _command(line)
        )
        act(rank, pid)
        _, errors = rank.communicate(timeout=60)
        return pid, rank.returncode, errors.splitlines()
    finally:
        rank.kill()
        rank.communicate()


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return ""
    return text if "watchdog.agent" in text else ""


def test_a_rank_whose_agent_is_killed_says_so_in_one_line():
    pid, code, errors = _ends(lambda _, pid: os.kill(pid, signal.SIGKILL))
    assert code == 1 and len(errors) == 1
    assert re.match(
        rf"error: rank 0 on {re.escape(socket.gethostname())} ends, because the process that watches it \(watchdog, "
        rf"process {pid}\) ended unexpectedly: killed from outside .*; start the same command again",
        errors[0],
    )


def test_a_rank_whose_agent_crashes_names_the_error_below_its_traceback(tmp_path):
    def crash(rank, _):
        rank.stdin.write("\n")
        rank.stdin.flush()

    pid, code, errors = _ends(crash, tmp_path / "train.log")
    assert code == 1 and errors[0].startswith("Traceback (most recent call last)") and "JSONDecodeError" in errors[-2]
    assert f"process {pid}) ended unexpectedly: by an error of its own, JSONDecodeError: " in errors[-1]
    assert (tmp_path / "train.log").read_text().splitlines() == errors[:-1], "what the agent prints is in the log too"


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        (3, "probably killed for lack of memory, as 3 processes of this host were meanwhile; use fewer"),
        (0, "killed from outside (kill -9); the kernel killed nothing for lack of memory; start"),
        (None, "killed from outside (kill -9); start"),
    ],
)
def test_lack_of_memory_is_named_where_the_kernel_tells_it(kills, expected):
    assert expected in client._agent_is_gone(1, "", kills)
