"""Asking every host at the same time, over ssh, as DeepSpeed's launcher reaches them."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sparse_mlp_ds.doctor import remote
from sparse_mlp_ds.doctor.facts import Facts, Request, look, runs_folder
from sparse_mlp_ds.doctor.hostfile import Host
from sparse_mlp_ds.errors import UserError

LIMIT_SECONDS = 30.0
"""For a host to answer; importing torch from a slow disk takes most of it."""
_SSH = (
    "ssh",
    "-o", "BatchMode=yes",
    "-o", f"ConnectTimeout={remote.CONNECT_SECONDS}",
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=2",
    "-o", "ControlPath=none",  # a shared connection of before would hide what is wrong now
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What became of asking a host."""

    host: Host
    facts: Facts | None
    error: str = ""
    """Why there are no facts, with the fix."""
    seconds: float = 0.0
    """Until it answered."""
    ahead: float = 0.0
    """Seconds by which its clock is ahead of this host's, more or less `unsure`."""
    unsure: float = 0.0


def here(request: Request, slots: int | None = None) -> Answer:
    """Examine this host alone."""
    facts = look(request)
    return Answer(Host(facts.host, slots), facts, seconds=facts.seconds)


def everyone(hosts: Sequence[Host], request: Request) -> list[Answer]:
    """Ask all hosts and return their answers in the same order, whatever each of them is like.

    Takes as long as the slowest, LIMIT_SECONDS at most. Raises UserError if this host cannot ask.
    """
    if not shutil.which("ssh"):
        raise UserError("ssh: not installed here; install openssh-client, DeepSpeed needs it as well")
    asking = _Asking()
    with _marker() as marker, _listener(len(hosts)) as port, ThreadPoolExecutor(len(hosts)) as pool:
        request = replace(request, marker=marker, call=port)
        try:
            return list(pool.map(lambda host: asking.ask(host, request), hosts))
        except BaseException:  # the pool waits for its threads, which wait for ssh
            asking.end()
            raise


class _Asking:
    """The ssh commands under way."""

    def __init__(self):
        self._running: set[subprocess.Popen] = set()
        self._lock, self._ended = threading.Lock(), False

    def ask(self, host: Host, request: Request) -> Answer:
        sent, started = time.time(), time.monotonic()
        with self._lock:
            if self._ended:
                return Answer(host, None, "was not asked")
            process = subprocess.Popen(
                [*_SSH, "--", host.name, remote.command(request)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {"LC_ALL": "C"},  # its messages are read here
            )  # fmt: skip
            self._running.add(process)
        try:
            output, errors = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            fix = "look for a file system that hangs (df), or ask again if it is only slow"
            return Answer(host, None, f"no answer within {LIMIT_SECONDS:.0f} s; {fix}", time.monotonic() - started)
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._running.discard(process)
        received, took = time.time(), time.monotonic() - started
        if process.returncode:
            return Answer(host, None, remote.why(host.name, process.returncode, errors.decode(errors="replace")), took)
        try:
            facts = remote.parse(output.decode(errors="replace"))
        except ValueError as error:
            return Answer(host, None, str(error), took)
        # Its clock was read between `sent`, plus what it took to find out the rest, and `received`.
        earliest = min(sent + max(facts.seconds, 0.0), received)
        return Answer(host, facts, "", took, facts.clock - (earliest + received) / 2, (received - earliest) / 2)

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()


@contextmanager
def _marker() -> Iterator[str]:
    """Make a file by which others know the shared folder; it is gone afterwards, also if the process is told to end.

    Its name is random: no host's cache of the folder can know it, neither as there nor as absent.
    """
    marker = runs_folder() / f".doctor-{secrets.token_hex(8)}"

    def leave(number, frame):
        sys.exit(128 + number)

    # Not those that nohup or the like has had ignored.
    deadly = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, leave)
    try:
        marker.touch()
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _listener(callers: int) -> Iterator[int]:
    """Listen on a free port, of IPv6 too where there is one, and yield it. The kernel answers; nobody has to accept."""
    try:
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=callers)
    except (OSError, ValueError):  # switched off, or not both at once
        listener = socket.create_server(("", 0), backlog=callers)
    with listener:
        yield listener.getsockname()[1]
