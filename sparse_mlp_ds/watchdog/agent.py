"""The process that watches one rank: `python -m sparse_mlp_ds.watchdog.agent PLAN`, started by `watchdog.client`.

It tells the coordinator what the rank is doing. It ends the rank, whatever the rank is doing, when the coordinator says
so, when the coordinator is gone, or when the launcher that should end the rank is gone. It imports neither torch nor
DeepSpeed, so that it starts at once and needs little memory.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sparse_mlp_ds.distributed import processes
from sparse_mlp_ds.errors import COPIES, one_line, print_error
from sparse_mlp_ds.watchdog import diagnosis
from sparse_mlp_ds.watchdog.channel import Channel
from sparse_mlp_ds.watchdog.coordinator import BEAT_SECONDS, SILENCE_SECONDS, Coordinator
from sparse_mlp_ds.watchdog.events import Events

GRACE_SECONDS = 15.0
"""Time for a rank whose launcher is gone to go from one part of a step to the next; writing a checkpoint may take
longer."""
KILL_SECONDS = 5.0
"""Time for a rank that was told to end, before it is killed."""
LEAVING_SECONDS = 15.0
"""The same for a rank that is already exiting with a code of its own: on a busy host, an interpreter ends slowly."""


@dataclass(frozen=True)
class Plan:
    """What an agent is told on its command line, as JSON."""

    rank: int
    """Number of the rank."""
    world_size: int
    """Number of ranks of the run."""
    pid: int
    """Process of the rank."""
    limit: float
    """Seconds without progress after which a rank counts as stuck."""
    channel: int
    """File descriptor of the socket to the rank."""
    stack_file: int
    """File descriptor of the file into which the rank writes its Python stacks on SIGUSR2."""
    launchers: Sequence[tuple[int, str]]
    """Process and description of each launcher that the rank must not outlive."""
    waiting_in: Sequence[str]
    """Paths of files and folders of which the innermost frames of a stack show that the rank waits for other ranks."""


class Agent:
    """Watches one rank."""

    def __init__(self, plan: Plan):
        """Take over the file descriptors of the plan; the rank's process has to exist."""
        self.plan, self.host = plan, socket.gethostname()
        self._process: psutil.Process | None = psutil.Process(plan.pid)  # None once it is gone
        self._rank = Channel(socket.socket(fileno=plan.channel))
        self._launchers = [(processes.with_number(pid), name) for pid, name in plan.launchers]
        self._coordinator = Coordinator(plan.world_size, plan.limit) if plan.rank == 0 else None
        self._to_coordinator: Channel | None = None
        self._selector = selectors.DefaultSelector()
        self._status: dict[str, Any] = {"phase": "start", "stopped": False}
        self._entered = self._heard = time.monotonic()  # the phase; from the coordinator
        self._children: set[psutil.Process] = set()
        self._left: int | None = None  # exit code of a rank that leaves by itself
        self._hosts: list[str] = []  # of all ranks
        self._deadline: float | None = None  # after which a rank that was told to end is killed
        self._lost_launcher: tuple[str, float] | None = None  # its description, and when it was missed
        self._launcher_reported = False
        self._last_beat = 0.0

    def run(self) -> None:
        """Watch until the rank is gone; on rank 0, until every rank is gone."""
        self._selector.register(self._rank.socket, selectors.EVENT_READ, self._from_rank)
        gone = os.pidfd_open(self.plan.pid)
        self._selector.register(gone, selectors.EVENT_READ, lambda: self._rank_gone(gone))
        port = None
        if coordinator := self._coordinator:
            self._selector.register(coordinator.server, selectors.EVENT_READ, lambda: self._accept(coordinator))
            port = coordinator.server.getsockname()[1]
        self._rank.send(pid=os.getpid(), port=port)
        while not self._is_over():
            for key, _ in self._selector.select(0.25):
                key.data()
            if self._process:
                self._look(self._process)
            if self._coordinator and self._process and self._coordinator.look():
                self._end(1)

    def tell_crash(self, error: Exception) -> None:
        """Print the traceback of an error of the agent itself, and tell the rank, which ends with it."""
        print_error(traceback.format_exc().rstrip())
        self._rank.send(crashed=f"{type(error).__name__}: {one_line(error)}")

    def _is_over(self) -> bool:
        """Return whether nothing is left to watch: for a single rank that leaves by itself, nobody has to be ended."""
        if self.plan.world_size == 1 and self._left is not None:
            return True
        return not self._process and (self._coordinator is None or self._coordinator.look())

    # ---- what arrives at the coordinator, in the agent of rank 0

    def _accept(self, coordinator: Coordinator) -> None:
        agent = Channel(coordinator.server.accept()[0])
        self._selector.register(agent.socket, selectors.EVENT_READ, lambda: self._from_agent(coordinator, agent))

    def _from_agent(self, coordinator: Coordinator, agent: Channel) -> None:
        records = agent.receive()
        for record in records or []:
            coordinator.receive(agent, record)
        if records is None:
            self._selector.unregister(agent.socket)
            coordinator.lose(agent)

    # ---- what arrives at this agent

    def _from_rank(self) -> None:
        records = self._rank.receive()
        if records is None and self._rank.socket in self._selector.get_map():
            self._selector.unregister(self._rank.socket)
        for record in records or []:
            if "coordinator" in record:
                address, port = record["coordinator"]
                self._to_coordinator = Channel(socket.create_connection((address, port), timeout=SILENCE_SECONDS))
                self._selector.register(self._to_coordinator.socket, selectors.EVENT_READ, self._from_coordinator)
                self._send(host=self.host)
            elif "at" in record:
                self._status |= record["at"]
                self._entered = time.monotonic()
            elif "run" in record:
                self._begin_run(**record["run"])
            elif "failed" in record:
                self._send_event("failed", record["failed"])
            elif "left" in record:
                self._left, self._entered = record["left"], time.monotonic()
                self._send(left=self._left, words=record["words"], status=self._status_now())

    def _begin_run(self, folder: str, log: str | None, on_event: Sequence[str]) -> None:
        """Take in where failures are recorded, in the agent of rank 0, see `client.Watch.begin_run`."""
        if log:
            COPIES.append(functools.partial(_append, log))
        if self._coordinator:
            self._coordinator.events = Events(Path(folder), on_event)

    def _from_coordinator(self) -> None:
        if self._to_coordinator is None:  # it was closed after the selector had seen the records
            return
        records = self._to_coordinator.receive()
        if records is None:
            self._selector.unregister(self._to_coordinator.socket)
            self._to_coordinator = None
            if self._process and self._left is None and self._deadline is None:
                self._coordinator_lost()
        for record in records or []:
            self._heard = time.monotonic()
            self._hosts = record.get("hosts", self._hosts)
            if "end" in record:
                self._end(record["end"])
            if "show_stack" in record and self._process:
                stack = self._stack(self._process)
                waits = diagnosis.is_waiting(stack, self.plan.waiting_in)
                self._send(status=self._status_now() | {"stack": stack, "waits": waits})

    # ---- what happens with time

    def _look(self, process: psutil.Process) -> None:
        now = time.monotonic()
        if now - self._last_beat > BEAT_SECONDS:
            self._last_beat = now
            with contextlib.suppress(psutil.Error):
                self._children |= set(process.children(recursive=True))
                self._status["stopped"] = process.status() == psutil.STATUS_STOPPED
            if self._status["stopped"] and self.plan.world_size == 1:
                self._entered = now  # nobody waits for it: its user may have typed Ctrl-Z
            self._send(status=self._status_now())
            self._look_at_launchers(process, now)
        silent = now - self._heard > SILENCE_SECONDS
        if self._to_coordinator and self._left is None and self._deadline is None and silent:
            self._coordinator_lost()
        if self._deadline and now > self._deadline:
            processes.send(process)

    def _look_at_launchers(self, process: psutil.Process, now: float) -> None:
        """Once a launcher is gone, ask the rank to save and exit; some time later, have the whole run ended."""
        for launcher, name in self._launchers:
            if self._lost_launcher is None and (launcher is None or not processes.runs(launcher)):
                self._lost_launcher = name, now
                processes.send(process, signal.SIGTERM)
                print_error(f"rank {self.plan.rank} on {self.host}: {name} is gone; the run saves and ends")
        if self._lost_launcher is None or self._launcher_reported:
            return
        if self._status["phase"] == "save" and self._left is None:
            return
        if now - max(self._lost_launcher[1], self._entered) <= GRACE_SECONDS:
            return
        if self._left is not None:  # it has saved its checkpoint and exits too slowly
            processes.send(process)
            return
        self._send_event("launcher", f"its launcher is gone: {self._lost_launcher[0]}")
        self._launcher_reported = True

    def _coordinator_lost(self) -> None:
        """End the rank; among the ranks on hosts that are left, the one with the lowest number reports why."""
        others = [rank for rank, host in enumerate(self._hosts) if host != self._hosts[0]]
        if self._hosts and self.plan.rank == min(others, default=1):
            event = diagnosis.Event("silent", 0, 0.0, f"{SILENCE_SECONDS:.0f}")
            text = diagnosis.report(event, {0: diagnosis.Status(0, self._hosts[0])})
            print_error(text)
        self._end(1)

    def _rank_gone(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        if self._left is None:
            self._from_rank()  # its last records
        if self._left is None and self._deadline is None:
            self._send_event("died", f"; {self._lost_launcher[0]} had gone before" if self._lost_launcher else "")
        self._process = None
        for child in self._children:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                # Children that have a session of their own, such as wandb's, end by themselves.
                if child.is_running() and os.getsid(child.pid) != child.pid:
                    processes.send(child)
        if self._to_coordinator:
            self._selector.unregister(self._to_coordinator.socket)
            self._to_coordinator.socket.close()
            self._to_coordinator = None

    def _end(self, code: int) -> None:
        """Tell the rank to exit with a code, and set the time at which it is killed."""
        if self._process and self._deadline is None:
            self._deadline = time.monotonic() + (KILL_SECONDS if self._left is None else LEAVING_SECONDS)
            self._rank.send(end=code)

    def _stack(self, process: psutil.Process) -> str:
        """Return the rank's Python stacks, which SIGUSR2 makes it write even in the middle of a call into C."""
        os.ftruncate(self.plan.stack_file, 0)
        os.lseek(self.plan.stack_file, 0, os.SEEK_SET)
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        return os.pread(self.plan.stack_file, 1 << 16, 0).decode(errors="replace")

    def _status_now(self) -> dict[str, Any]:
        return self._status | {"age": time.monotonic() - self._entered}

    def _send_event(self, kind: diagnosis.Kind, text: str) -> None:
        self._send(status=self._status_now(), event=kind, text=text)

    def _send(self, **record: Any) -> None:
        if self._to_coordinator:
            self._to_coordinator.send(rank=self.plan.rank, **record)


def _append(path: str, _: int, text: str) -> None:
    """Append text to a file, if it can be written."""
    with contextlib.suppress(OSError), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


if __name__ == "__main__":
    if os.fork():  # not a child of the rank any more, because launchers kill the children of their ranks too
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    agent = Agent(Plan(**json.loads(sys.argv[1])))
    try:
        agent.run()
    except Exception as error:
        agent.tell_crash(error)
        sys.exit(1)
