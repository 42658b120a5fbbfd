"""One rank's sentry: `python -m sparse_mlp_ds.sentry`, started by `train.watchdog`.

It tells the hub how the rank fares, and ends the rank, whatever state that is in, when the hub says so, when the hub is
gone, or when the launcher that would have to is gone.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time

import psutil

from sparse_mlp_ds.sentry import verdict
from sparse_mlp_ds.sentry.hub import BEAT_SECONDS, SILENCE_SECONDS, Hub
from sparse_mlp_ds.sentry.lines import Lines

GRACE_SECONDS = 15.0
"""For a rank without launcher to save itself and leave."""
KILL_SECONDS = 5.0
"""For a rank that is told to end, before it is killed."""
LEAVING_SECONDS = 15.0
"""For one that is leaving with an exit code of its own: taking down an interpreter takes long on a busy host."""


class Sentry:
    """Watches one rank."""

    def __init__(self, plan: dict):
        """plan: what `train.watchdog` says."""
        self.rank, self.host = plan["rank"], socket.gethostname()
        self.process = psutil.Process(plan["pid"])
        self.channel = Lines(socket.socket(fileno=plan["channel"]))
        self.stack_file = plan["stack_file"]
        self.launchers = [
            (psutil.Process(pid) if psutil.pid_exists(pid) else None, name) for pid, name in plan["launchers"]
        ]
        self.hub = Hub(plan["world"], plan["limit"]) if self.rank == 0 else None
        self.status = {"phase": "start", "stopped": False}
        self.entered = self.heard = time.monotonic()
        self.children: set[psutil.Process] = set()
        self.left: int | None = None
        self.hosts: list[str] = []
        self.deadline: float | None = None
        self.orphan: float | None = None
        self.selector = selectors.DefaultSelector()
        self.to_hub: Lines | None = None
        self._last_beat = 0.0

    def run(self) -> None:
        """Watch until the rank is gone, and on rank 0 until every rank is."""
        self.selector.register(self.channel.socket, selectors.EVENT_READ, self._from_rank)
        gone = os.pidfd_open(self.process.pid)
        self.selector.register(gone, selectors.EVENT_READ, lambda: self._rank_gone(gone))
        if self.hub:
            self.selector.register(self.hub.server, selectors.EVENT_READ, self._accept)
            self.channel.send(port=self.hub.server.getsockname()[1])
        while self.process or (self.hub and not self.hub.look()):
            for key, _ in self.selector.select(0.25):
                key.data()
            self._look()
            if self.hub and self.process and self.hub.look():
                self._end(1)

    def _accept(self) -> None:
        client = Lines(self.hub.server.accept()[0])
        self.selector.register(client.socket, selectors.EVENT_READ, lambda: self._from_client(client))

    def _from_client(self, client: Lines) -> None:
        records = client.receive()
        for record in records or []:
            self.hub.hear(client, record)
        if records is None:
            self.selector.unregister(client.socket)
            self.hub.lose(client)

    def _from_rank(self) -> None:
        records = self.channel.receive()
        if records is None and self.channel.socket in self.selector.get_map():
            self.selector.unregister(self.channel.socket)
        for record in records or []:
            if "hub" in record:
                self.to_hub = Lines(socket.create_connection(record["hub"], timeout=SILENCE_SECONDS))
                self.selector.register(self.to_hub.socket, selectors.EVENT_READ, self._from_hub)
                self._say(host=self.host)
            elif "at" in record:
                self.status |= record["at"]
                self.entered = time.monotonic()
            elif "failed" in record:
                self._say(status=self._status(), event=verdict.FAILED, text=record["failed"])
            elif "left" in record:
                self.left = record["left"]
                self._say(left=self.left)

    def _from_hub(self) -> None:
        if self.to_hub is None:  # closed since the selector saw it
            return
        records = self.to_hub.receive()
        if records is None:
            self.selector.unregister(self.to_hub.socket)
            self.to_hub = None
            if self.process and self.left is None and self.deadline is None:
                self._hub_lost()
        for record in records or []:
            self.heard = time.monotonic()
            self.hosts = record.get("hosts", self.hosts)
            if "end" in record:
                self._end(record["end"])
            if "show_stack" in record and self.process:
                self._say(status=self._status() | {"stack": self._stack()})

    def _look(self) -> None:
        now = time.monotonic()
        if self.process is None:
            return
        if now - self._last_beat > BEAT_SECONDS:
            self._last_beat = now
            with contextlib.suppress(psutil.Error):
                self.children |= set(self.process.children(recursive=True))
                self.status["stopped"] = self.process.status() == psutil.STATUS_STOPPED
            self._say(status=self._status())
            self._look_at_launchers(now)
        if self.to_hub and self.left is None and self.deadline is None and now - self.heard > SILENCE_SECONDS:
            self._hub_lost()
        if self.deadline and now > self.deadline:
            self.process.kill()

    def _look_at_launchers(self, now: float) -> None:
        for launcher, name in self.launchers:
            if self.orphan is None and (launcher is None or not launcher.is_running() or _is_dead(launcher)):
                self.orphan, self.orphan_of = now, name
                print(f"rank {self.rank} on {self.host}: {name} is gone; the run saves and ends", flush=True)
                self.process.send_signal(signal.SIGTERM)
        if self.orphan and now - self.orphan > GRACE_SECONDS:
            if self.left is not None:  # it has saved itself, and is slow to leave
                self.process.kill()
                return
            self._say(status=self._status(), event=verdict.LAUNCHER, text=f"its launcher is gone: {self.orphan_of}")
            self.orphan = now + 1e9

    def _hub_lost(self) -> None:
        """End the rank; one of those that are not on the lost host says why."""
        others = [rank for rank, host in enumerate(self.hosts) if host != self.hosts[0]]
        if self.hosts and self.rank == min(others, default=1):
            gone = verdict.Status(0, self.hosts[0])
            event = verdict.Event(verdict.SILENT, 0, 0.0, f"{SILENCE_SECONDS:.0f}")
            print(verdict.report(event, {0: gone}, []), file=sys.stderr, flush=True)
        self._end(1)

    def _rank_gone(self, pidfd: int) -> None:
        self.selector.unregister(pidfd)
        if self.left is None:
            self._from_rank()  # what it said last
        if self.left is None and self.deadline is None:
            why = f"; {self.orphan_of} had gone before" if self.orphan else ""
            self._say(status=self._status(), event=verdict.DIED, text=why)
        self.process = None
        for child in self.children:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if (
                    child.is_running() and os.getsid(child.pid) != child.pid
                ):  # those with a session of their own end alone
                    child.kill()
        if self.to_hub:
            self.selector.unregister(self.to_hub.socket)
            self.to_hub.socket.close()
            self.to_hub = None

    def _end(self, code: int) -> None:
        if self.process and self.deadline is None:
            self.deadline = time.monotonic() + (KILL_SECONDS if self.left is None else LEAVING_SECONDS)
            self.channel.send(end=code)

    def _stack(self) -> str:
        """Return the rank's Python stacks, which a signal makes it write, even in the middle of a call into C."""
        os.ftruncate(self.stack_file, 0)
        os.lseek(self.stack_file, 0, os.SEEK_SET)
        self.process.send_signal(signal.SIGUSR2)
        self.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        return os.pread(self.stack_file, 1 << 16, 0).decode(errors="replace")

    def _status(self) -> dict:
        return self.status | {"age": time.monotonic() - self.entered}

    def _say(self, **record) -> None:
        if self.to_hub:
            self.to_hub.send(rank=self.rank, **record)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    if os.fork():  # so that it is nobody's child: launchers kill the children of their ranks too
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        Sentry(json.loads(sys.argv[1])).run()
