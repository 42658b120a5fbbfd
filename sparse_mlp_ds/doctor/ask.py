"""Asks all hosts at the same time, over ssh, which is how DeepSpeed's launcher reaches them."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from sparse_mlp_ds.distributed import network
from sparse_mlp_ds.doctor import remote
from sparse_mlp_ds.doctor.facts import HostFacts, Request, look, runs_folder
from sparse_mlp_ds.doctor.hostfile import Host
from sparse_mlp_ds.errors import UserError

LIMIT_SECONDS = 30.0
"""Longest time to wait for a host's answer; most of it is for importing torch from a slow disk."""
_SSH = (
    "ssh",
    "-o", "BatchMode=yes",
    "-o", f"ConnectTimeout={remote.CONNECT_SECONDS}",
    "-o", "ServerAliveInterval=5",
    "-o", "ServerAliveCountMax=2",
    "-o", "ControlPath=none",  # a connection that is already open would hide what is wrong now
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A host's answer, or why there is none."""

    host: Host
    """The host, as the hostfile names it."""
    facts: HostFacts | None
    """What the host found out about itself; None if it did not answer."""
    error: str = ""
    """Why the host did not answer, with the fix; empty if it did."""
    seconds: float = 0.0
    """Seconds that the answer took."""
    ahead: float = 0.0
    """Seconds by which the host's clock is ahead of this host's clock."""
    unsure: float = 0.0
    """Largest error of `ahead`, in seconds."""


def here(request: Request, slots: int | None = None) -> Answer:
    """Examine this host alone. slots: number of ranks that it is to run; None if no hostfile says so."""
    facts = look(request)
    return Answer(Host(facts.host, slots), facts, seconds=facts.seconds)


def everyone(hosts: Sequence[Host], request: Request) -> list[Answer]:
    """Ask all hosts and return their answers in the same order; a host that cannot answer has an error as its answer.

    This takes as long as the slowest host, LIMIT_SECONDS at most. Raises UserError if this host has no ssh.
    """
    if not shutil.which("ssh"):
        raise UserError("ssh: not installed here; install openssh-client, DeepSpeed needs it as well")
    asking = Shells()
    with _marker() as marker, _listener(len(hosts)) as port, ThreadPoolExecutor(len(hosts)) as pool:
        request = replace(request, marker=marker, call=port)
        try:
            return list(pool.map(lambda host: asking.ask(host, request), hosts))
        except BaseException:  # the pool waits for its threads, which wait for ssh
            asking.end()
            raise


class Shells:
    """Runs commands on hosts over ssh, and ends those that still run when it is told to."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._ended = threading.Lock(), False

    def run(self, host: str, command: str, limit: float) -> str:
        """Return what a command printed on a host. limit: longest time to wait, in seconds.

        Raises ValueError, whose message says with the fix why there is none, without the host's name.
        """
        with self._lock:
            if self._ended:
                raise ValueError("was not asked")
            process = subprocess.Popen(
                [*_SSH, "--", host, command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {"LC_ALL": "C"},  # its messages are read here
            )  # fmt: skip
            self._running.add(process)
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            fix = "look for a file system that hangs (df), or ask again if it is only slow"
            raise ValueError(f"no answer within {limit:.0f} s; {fix}") from None
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._running.discard(process)
        if process.returncode:
            raise ValueError(remote.why(host, process.returncode, errors.decode(errors="replace")))
        return output.decode(errors="replace")

    def ask(self, host: Host, request: Request) -> Answer:
        """Return a host's answer about itself."""
        sent, started = time.time(), time.monotonic()
        try:
            output = self.run(host.name, remote.command(remote.MODULE, request), LIMIT_SECONDS)
            received = time.time()
            facts = remote.parse(output)
        except ValueError as error:
            return Answer(host, None, str(error), time.monotonic() - started)
        took = time.monotonic() - started
        # The host read its clock last of all: `facts.seconds` after it began, so at the earliest at `sent` plus that.
        earliest = min(sent + max(facts.seconds, 0.0), received)
        return Answer(host, facts, "", took, facts.clock - (earliest + received) / 2, (received - earliest) / 2)

    def end(self) -> None:
        """Kill the commands that still run; later ones are not started."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()


@contextmanager
def _marker() -> Iterator[str]:
    """Make a file in the folder of the runs, by which other hosts show that they share it, and yield its path.

    The file is removed afterwards, also if a signal ends the process. Its name is random, so that no host's cache of
    the folder can know whether it exists.
    """
    marker = runs_folder() / f".doctor-{secrets.token_hex(8)}"

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    # Signals that are ignored stay so, as SIGHUP is under nohup.
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
    """Listen on a free port, also of IPv6 where it exists, and yield the port.

    callers: number of hosts that may call at the same time. The kernel completes connections, so none is accepted.
    """
    with network.listen(backlog=callers) as listener:
        yield listener.getsockname()[1]
