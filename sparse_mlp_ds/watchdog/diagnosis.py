"""Which rank failed first: of everything that is reported when a run falls apart, the event that caused the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["start", "data", "forward", "backward", "update", "record", "stop", "save", "evaluate"]
"""Part of a stage or step that a rank is in, in the order of a step."""
Kind = Literal["died", "silent", "launcher", "failed", "stuck"]
"""Kind of an event that ends a run, likelier causes first.

A rank that fails keeps its connections open until the diagnosis, so it makes no other rank die or fall silent. But a
rank that dies makes others fail, and each of these leaves others waiting.
"""
LONG_PHASES: tuple[Phase, ...] = ("start", "save", "evaluate")
"""Phases that may take long: in them, only a stopped process counts as stuck."""
_PHASES: tuple[Phase, ...] = get_args(Phase)
_KINDS: tuple[Kind, ...] = get_args(Kind)
_INNERMOST = 5  # lines of a stack


@dataclass(frozen=True)
class Status:
    """What a rank was doing when it was last heard from."""

    rank: int
    """Number of the rank."""
    host: str
    """Name of the rank's host."""
    stage: str = ""
    """Stage of the recipe; empty before the first."""
    step: int = 0
    """Step of the stage."""
    phase: Phase = "start"
    """Part of the step."""
    age: float = 0.0
    """Seconds since the rank entered the phase."""
    stopped: bool = False
    """Whether the kernel holds the rank's process stopped (SIGSTOP)."""
    stack: str = ""
    """The Python stacks of the rank's threads, as faulthandler writes them; empty unless they were asked for."""
    waits: bool = False
    """Whether the stack shows a call that waits for the other ranks."""

    def is_stuck(self, limit: float) -> bool:
        """Return whether the rank has been in its phase for too long. limit: seconds without progress."""
        return self.age > limit and (self.stopped or self.phase not in LONG_PHASES)

    def __str__(self) -> str:
        where = f" at step {self.step} of stage {self.stage}, in {self.phase}" if self.stage else f", in {self.phase}"
        return f"rank {self.rank} on {self.host}{where}"


@dataclass(frozen=True)
class Event:
    """Something that ends a run."""

    kind: Kind
    """What has happened."""
    rank: int
    """Rank to which it has happened."""
    time: float
    """Time at which the coordinator heard of it, in seconds of its monotonic clock."""
    text: str = ""
    """What the report adds, depending on the kind: a traceback, a number of seconds, a launcher."""


def is_waiting(stack: str, waiting_in: Iterable[str]) -> bool:
    """Return whether the training thread's stack shows it waiting for the other ranks.

    Args:
        stack: Stacks of all threads of a rank, the training thread's last, as faulthandler writes them.
        waiting_in: Paths of files and folders of which the innermost frames show a wait.
    """
    _, _, current = stack.rpartition("(most recent call first):")
    return any(path in line for line in current.splitlines()[:_INNERMOST] for path in waiting_in)


def first(events: Sequence[Event]) -> Event:
    """Return the event that caused the others: the likeliest kind of cause, and the earliest of that kind."""
    return min(events, key=lambda event: (_KINDS.index(event.kind), event.time))


def behind(ranks: Iterable[Status]) -> Status:
    """Return the rank that the others wait for: a stopped one, or the one with least progress that does not wait."""
    return min(ranks, key=lambda rank: (not rank.stopped, rank.step, _PHASES.index(rank.phase), rank.waits, rank.rank))


def report(cause: Event, ranks: Mapping[int, Status], events: Iterable[Event] = ()) -> str:
    """Return the one report of a failure, several lines.

    Args:
        cause: The event that came first.
        ranks: Every rank's status by its number.
        events: All events, whose other ranks are listed.
    """
    rank = ranks[cause.rank]
    body = ""
    match cause.kind:
        case "died":
            head = f"its process is gone, without an error message (kill -9, or out of memory?){cause.text}"
        case "silent":
            head = f"no message from it for {cause.text} s: its host or the network is gone"
        case "launcher":
            head = cause.text
        case "stuck":
            why = "it is stopped (SIGSTOP)" if rank.stopped else "it waits for no rank, the others wait for it"
            if len(ranks) == 1:
                why = "it is in a call that does not return; if a step may take so long, raise train.timeout_seconds"
            head, body = f"no progress for {rank.age:.0f} s: {why}", rank.stack
        case "failed":
            head, body = (cause.text.strip().splitlines() or [""])[-1], cause.text
    lines = [f"FAILED FIRST: {rank}: {head}", *body.rstrip().splitlines()]
    if later := sorted({f"{event.rank} ({event.kind})" for event in events if event.rank != cause.rank}):
        lines.append(f"after it: rank {', '.join(later)}")
    return "\n".join([*lines, "every process of the run ends now"])
