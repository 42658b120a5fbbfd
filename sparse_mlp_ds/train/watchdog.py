"""A rank's line to its sentry: what it is doing, how it fails, how it leaves.

The sentry is a process beside the rank (`sparse_mlp_ds/sentry`), so that a rank which is killed, stopped or stuck in a
call is still noticed, named and ended.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator

import psutil

from sparse_mlp_ds import dist, front_end
from sparse_mlp_ds.errors import RunError, UserError
from sparse_mlp_ds.sentry.lines import Lines
from sparse_mlp_ds.train.stop import StoppedError

LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed.run", "mpirun", "mpiexec", "orted", "prted", "hydra_pmi_proxy")
VERDICT_SECONDS = 30.0


class Watch:
    """What training says of itself; costs one small write per call."""

    def __init__(self, lines: Lines | None = None):
        """lines: to the sentry; None where nobody watches."""
        self._lines = lines

    def at(self, phase: str, stage: str | None = None, step: int | None = None) -> None:
        """Say what comes now; see `sentry.verdict.PHASES`. Stage and step stay until others are said."""
        if self._lines:
            given = {"phase": phase, "stage": stage, "step": step}
            self._lines.send(at={name: value for name, value in given.items() if value is not None})

    def left(self, code: int) -> None:
        """Say that this rank leaves by itself."""
        if self._lines:
            self._lines.send(left=code)

    def failed(self, text: str) -> None:
        """Hand over a traceback and wait for the end.

        Until then the connections of this rank stay, so that no other rank fails for want of them.
        """
        if self._lines:
            self._lines.send(failed=text)
            time.sleep(VERDICT_SECONDS)


@contextlib.contextmanager
def watch(limit: float) -> Iterator[Watch]:
    """Have this rank watched, inside the process group. Collective.

    limit: seconds without progress, after which a rank counts as stuck.
    """
    if dist.world_size() == 1 or not hasattr(os, "pidfd_open"):
        yield Watch()
        return
    lines = _start_sentry(limit)
    group = dist.control_group()
    port = _first(lines, "port") if dist.rank() == 0 else None
    lines.send(hub=(os.environ["MASTER_ADDR"], dist.gather_objects(port, group)[0]))
    threading.Thread(target=_obey, args=(lines,), daemon=True).start()
    watch = Watch(lines)
    try:
        yield watch
    except StoppedError:
        watch.left(85)
        raise
    except UserError:
        watch.left(2)
        raise
    except Exception as error:
        if not isinstance(error, RunError):
            watch.failed(traceback.format_exc())
        watch.left(1)
        raise
    except BaseException:
        watch.left(130)
        raise
    watch.left(0)


def _start_sentry(limit: float) -> Lines:
    mine, its = socket.socketpair()
    with tempfile.TemporaryFile() as stacks:
        faulthandler.register(signal.SIGUSR2, os.dup(stacks.fileno()))  # stays open as long as the process
        plan = {
            "rank": dist.rank(), "world": dist.world_size(), "pid": os.getpid(), "limit": limit,
            "channel": its.fileno(), "stack_file": stacks.fileno(), "launchers": _launchers(),
        }  # fmt: skip
        command = [sys.executable, "-m", "sparse_mlp_ds.sentry", json.dumps(plan)]
        subprocess.run(
            command,
            pass_fds=[its.fileno(), stacks.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    its.close()
    return Lines(mine)


def _launchers() -> list[tuple[int, str]]:
    """Return the processes that this rank must not outlive: its launcher, and the user's command if it is here."""
    found = {}
    for process in psutil.Process().parents():
        command = " ".join(process.cmdline())
        session = process.name().startswith("sshd")  # pdsh's; the daemon above it is none of this run's
        if session or any(name in command for name in LAUNCHERS):
            found[process.pid] = f"its launcher, process {process.pid} ({command[:60]})"
        if session or process.pid not in found:
            break
    if dist.local_rank() == 0 and (process := front_end.find()):
        found[process.pid] = f"the deepspeed command, process {process.pid}"
    return list(found.items())


def _first(lines: Lines, name: str) -> int:
    deadline = time.monotonic() + VERDICT_SECONDS
    while time.monotonic() < deadline:
        for record in lines.receive(1.0) or []:
            if name in record:
                return record[name]
    raise RunError("the process that watches rank 0 did not start")


def _obey(lines: Lines) -> None:
    """End this process when the sentry says so, which then ends its loaders, or with them when the sentry is gone."""
    while not (records := lines.receive(None)) and records is not None:
        continue
    if records is None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    os._exit(records[0]["end"] if records else 1)
