"""Where all sentries report to: it runs in the sentry of rank 0, comes to one verdict and ends everybody."""

import socket
import sys
import time
from dataclasses import replace
from typing import Any

from sparse_mlp_ds.sentry import verdict
from sparse_mlp_ds.sentry.lines import Lines
from sparse_mlp_ds.sentry.verdict import Event, Status

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 12.0
"""Without a beat, after which a host counts as gone."""
SETTLE_SECONDS = 2.0
"""Between the first event and the verdict: the cause may be heard after its consequences."""
LEAVE_SECONDS = 10.0
"""Between a rank's own exit with an error it has printed, and the end of those that have not left likewise."""


class Hub:
    """Knows every rank's status and every event."""

    def __init__(self, world: int, limit: float):
        """limit: seconds without progress, after which a rank is stuck."""
        self.world, self.limit = world, limit
        self.server = socket.create_server(("", 0))
        self.ranks: dict[int, Status] = {}
        self.clients: dict[int, Lines] = {}
        self.ended: float | None = None
        self._heard: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self._events: list[Event] = []
        self._last_beat = 0.0
        self._asked: float | None = None
        self._then: dict[int, Status] = {}

    def hear(self, client: Lines, record: dict[str, Any]) -> None:
        """Take in one record of a sentry."""
        now, rank = time.monotonic(), record["rank"]
        if "host" in record:
            self.clients[rank], self.ranks[rank] = client, Status(rank, record["host"])
            if len(self.ranks) == self.world:
                self._tell(hosts=[self.ranks[r].host for r in range(self.world)])
        self._heard[rank] = now
        if "status" in record:
            self.ranks[rank] = replace(self.ranks[rank], **record["status"])
        if "left" in record:
            self._left[rank] = record["left"]
            if record["left"] not in (0, 85) and self.ended is None:
                self.ended = now + LEAVE_SECONDS
        if "event" in record and rank not in self._left:
            self._events.append(Event(record["event"], rank, now, record.get("text", "")))

    def lose(self, client: Lines) -> None:
        """Note that a sentry's connection has ended."""
        for rank, one in list(self.clients.items()):
            if one is client:
                del self.clients[rank]
                if rank not in self._left:
                    self._events.append(Event(verdict.DIED, rank, time.monotonic()))

    def look(self) -> bool:
        """Judge, as time passes; returns whether nobody is left to watch."""
        now = time.monotonic()
        if now - self._last_beat > BEAT_SECONDS:
            self._last_beat = now
            self._tell(beat=1)
        for rank in list(self.clients):
            if rank not in self._left and now - self._heard[rank] > SILENCE_SECONDS:
                del self.clients[rank]  # its connection will not end by itself
                self._events.append(Event(verdict.SILENT, rank, now, f"{SILENCE_SECONDS:.0f}"))
        if self._events and self.ended is None:
            self._judge_events(now)
        elif self.ended is None:
            self._judge_progress(now)
        elif (
            now > self.ended and self._left
        ):  # somebody left with an error; those that follow by themselves have done so
            self._tell(end=max(self._left.values()))
            self._left.clear()
        over = self.ended is not None and now > self.ended + 2 * LEAVE_SECONDS
        return over or (len(self.ranks) == self.world and not self.clients)

    def _judge_events(self, now: float) -> None:
        if now - min(event.time for event in self._events) < SETTLE_SECONDS:
            return
        cause = verdict.first(self._events)
        print(verdict.report(cause, self.ranks, self._events), file=sys.stderr, flush=True)
        self._end(now)

    def _judge_progress(self, now: float) -> None:
        present = [status for rank, status in self.ranks.items() if rank not in self._left]
        if self._asked is None and any(status.is_stuck(self.limit) for status in present):
            self._asked, self._then = now, {status.rank: status for status in present}
            self._tell(show_stack=1)  # to write it down, a stopped rank is let go on: what counts is how it was
        elif self._asked is not None and now - self._asked > SETTLE_SECONDS:
            ranks = {rank: replace(then, stack=self.ranks[rank].stack) for rank, then in self._then.items()}
            cause = Event(verdict.STUCK, verdict.behind(list(ranks.values())).rank, now)
            print(verdict.report(cause, ranks, []), file=sys.stderr, flush=True)
            self._end(now)

    def _end(self, now: float) -> None:
        self.ended = now
        self._left.clear()
        self._tell(end=1)

    def _tell(self, **record: Any) -> None:
        for client in list(self.clients.values()):
            client.send(**record)
