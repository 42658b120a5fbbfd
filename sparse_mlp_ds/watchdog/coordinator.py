"""Where all agents report to: it runs in the agent of rank 0, finds out which rank failed first, and ends all ranks."""

import time
from dataclasses import replace
from typing import Any

from sparse_mlp_ds.distributed import network
from sparse_mlp_ds.errors import STOPPED, print_error
from sparse_mlp_ds.watchdog import diagnosis
from sparse_mlp_ds.watchdog.channel import Channel
from sparse_mlp_ds.watchdog.diagnosis import Event, Status
from sparse_mlp_ds.watchdog.events import EventName, Events

BEAT_SECONDS = 1.0
"""Time between two heartbeats, from each agent to the coordinator and back."""
SILENCE_SECONDS = 12.0
"""Time without a heartbeat after which a host counts as gone."""
SETTLE_SECONDS = 2.0
"""Time between the first event and the diagnosis, because a cause may arrive after its consequences."""
LEAVE_SECONDS = 10.0
"""Time between a rank's exit with an error that it has printed itself, and the end of ranks that have not exited."""


class Coordinator:
    """Knows every rank's status and every event, and tells the agents when to end their ranks."""

    def __init__(self, world_size: int, limit: float):
        """limit: seconds without progress after which a rank counts as stuck."""
        self.world_size, self.limit = world_size, limit
        self.server = network.listen()
        """Where the agents connect."""
        self.events: Events | None = None
        """Takes failures, once rank 0 has told where."""
        self._end_code: int | None = None  # with which ranks end as soon as the user's command knows of it
        self._ranks: dict[int, Status] = {}
        self._agents: dict[int, Channel] = {}
        self._ended: float | None = None  # when the ranks were, or will be, told to end
        self._heard: dict[int, float] = {}
        self._left: dict[int, int] = {}  # exit codes of the ranks that leave by themselves
        self._last_words: dict[int, str] = {}  # their errors
        self._events: list[Event] = []
        self._last_beat = 0.0
        self._asked: float | None = None  # when the agents were asked for stacks
        self._when_asked: dict[int, Status] = {}

    def receive(self, agent: Channel, record: dict[str, Any]) -> None:
        """Take in one record of an agent."""
        now, rank = time.monotonic(), record["rank"]
        if "host" in record:
            self._agents[rank], self._ranks[rank] = agent, Status(rank, record["host"])
            if len(self._ranks) == self.world_size:
                self._send(hosts=[self._ranks[number].host for number in range(self.world_size)])
        self._heard[rank] = now
        if "status" in record:
            self._ranks[rank] = replace(self._ranks[rank], **record["status"])
        if "left" in record:
            self._left[rank] = record["left"]
            self._last_words[rank] = record.get("words", "")
            if record["left"] not in (0, STOPPED) and self._ended is None:
                self._ended = now + LEAVE_SECONDS
        if "event" in record and rank not in self._left:
            self._events.append(Event(record["event"], rank, now, record.get("text", "")))

    def lose(self, agent: Channel) -> None:
        """Note that an agent's connection has ended."""
        for rank in [rank for rank, channel in self._agents.items() if channel is agent]:
            del self._agents[rank]
            if rank not in self._left:
                text = "; or only the process that watches it"
                self._events.append(Event("died", rank, time.monotonic(), text))

    def look(self) -> bool:
        """Look for ranks that are silent, failed or stuck; to be called often. Returns whether the run is over."""
        now = time.monotonic()
        if now - self._last_beat > BEAT_SECONDS:
            self._last_beat = now
            self._send(beat=1)
        for rank in list(self._agents):
            if rank not in self._left and now - self._heard[rank] > SILENCE_SECONDS:
                del self._agents[rank]  # the connection to a lost host does not end by itself
                self._events.append(Event("silent", rank, now, f"{SILENCE_SECONDS:.0f}"))
        if self._end_code is not None:
            if self.events and not self.events.is_over():
                return False
            self._send(end=self._end_code)
            self._end_code = None
        if self._ended is None:
            if self._events:
                self._judge_events(now)
            else:
                self._judge_progress(now)
        elif now > self._ended and self._left:
            # A rank left with an error. Ranks that leave after it by themselves have done so by now.
            self._tell_of_a_left_rank()
            self._end_code = max(self._left.values())
            self._left.clear()
        over = self._ended is not None and now > self._ended + 2 * LEAVE_SECONDS
        return over or (len(self._ranks) == self.world_size and not self._agents)

    def _judge_events(self, now: float) -> None:
        if now - min(event.time for event in self._events) < SETTLE_SECONDS:
            return
        text = diagnosis.report(diagnosis.first(self._events), self._ranks, self._events)
        self._report(text, "failed", now)

    def _judge_progress(self, now: float) -> None:
        """Ask for all stacks once a rank is stuck; when they have arrived, report which rank the others wait for."""
        present = [status for rank, status in self._ranks.items() if rank not in self._left]
        if self._asked is None and any(status.is_stuck(self.limit) for status in present):
            # A stopped rank is continued so that it can write its stack; what counts is the status that it had before.
            self._asked, self._when_asked = now, {status.rank: status for status in present}
            self._send(show_stack=1)
        elif self._asked is not None and now - self._asked > SETTLE_SECONDS:
            ranks = {
                rank: replace(status, stack=self._ranks[rank].stack, waits=self._ranks[rank].waits)
                for rank, status in self._when_asked.items()
            }
            stuck = Event("stuck", diagnosis.behind(ranks.values()).rank, now)
            self._report(diagnosis.report(stuck, ranks), "stalled", now)

    def _report(self, text: str, event: EventName, now: float) -> None:
        """Print the report and have every rank ended, as soon as the user's command knows of it."""
        print_error(text)
        self._ended = now
        self._left.clear()
        self._end_code = 1
        if self.events:
            self.events.add(event, text)

    def _tell_of_a_left_rank(self) -> None:
        """Record the failure of a rank that printed its own error, unless rank 0 leaves too and has recorded it."""
        if self.events and 0 not in self._left:
            rank, code = max(self._left.items(), key=lambda item: item[1])
            words = self._last_words[rank] or "its error was printed above"
            self.events.add("failed", f"{self._ranks[rank]}: exit code {code}: {words}")

    def _send(self, **record: Any) -> None:
        for agent in list(self._agents.values()):
            agent.send(**record)
