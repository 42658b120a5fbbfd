"""Who failed first: of all that is heard when a run falls apart, the one event that the others followed from."""

from dataclasses import dataclass

DIED, FAILED, STUCK, SILENT, LAUNCHER = "died", "failed", "stuck", "silent", "launcher"
ORDER = (DIED, SILENT, LAUNCHER, FAILED, STUCK)
"""Likelier causes first: a rank that fails keeps its connections until the verdict, so it makes no other rank die or
fall silent, but a rank that dies makes others fail, and any of these leaves others waiting."""
PHASES = ("start", "data", "forward", "backward", "update", "record", "stop", "save", "evaluate")
PATIENT = ("start", "save", "evaluate")
"""Phases that may last; only a stopped process counts as stuck in them."""


@dataclass(frozen=True)
class Status:
    """What a rank was doing when last heard of."""

    rank: int
    host: str
    stage: str = ""
    step: int = 0
    phase: str = "start"
    age: float = 0.0
    """Seconds since it entered the phase."""
    stopped: bool = False
    """Whether the kernel holds the process stopped (SIGSTOP)."""
    stack: str = ""

    @property
    def waits(self) -> bool:
        """Whether its stack shows it waiting for other ranks."""
        _, _, current = self.stack.rpartition("(most recent call first):")
        return any("torch/distributed/" in line or "train/stop.py" in line for line in current.splitlines()[:5])

    def is_stuck(self, limit: float) -> bool:
        """Say whether it has been where it is for too long."""
        return self.age > limit and (self.stopped or self.phase not in PATIENT)

    def __str__(self) -> str:
        where = f" at step {self.step} of stage {self.stage}, in {self.phase}" if self.stage else f", in {self.phase}"
        return f"rank {self.rank} on {self.host}{where}"


@dataclass(frozen=True)
class Event:
    """Something that ends a run."""

    kind: str
    rank: int
    time: float
    text: str = ""


def first(events: list[Event]) -> Event:
    """Return the event that the others followed from."""
    return min(events, key=lambda event: (ORDER.index(event.kind), event.time))


def behind(ranks: list[Status]) -> Status:
    """Return whom the others wait for: a stopped one, else who is least far and waits for nobody."""
    return min(ranks, key=lambda one: (not one.stopped, one.step, PHASES.index(one.phase), one.waits, one.rank))


def report(event: Event, ranks: dict[int, Status], others: list[Event]) -> str:
    """Return the one report of a failure."""
    one = ranks[event.rank]
    match event.kind:
        case "died":
            head, body = f"its process is gone without a word (kill -9, or out of memory?){event.text}", ""
        case "silent":
            head, body = f"nothing was heard of it for {event.text} s: its host or the network is gone", ""
        case "launcher":
            head, body = event.text, ""
        case "stuck":
            why = "it is stopped (SIGSTOP)" if one.stopped else "it waits for nobody, the others for it"
            head, body = f"no progress for {one.age:.0f} s: {why}", one.stack
        case _:
            lines = event.text.strip().splitlines()
            head, body = lines[-1] if lines else "", event.text
    text = [f"FAILED FIRST: {one}: {head}", *body.rstrip().splitlines()]
    if also := sorted({f"{e.rank} ({e.kind})" for e in others if e.rank != event.rank}):
        text.append(f"after it: rank {', '.join(also)}")
    return "\n".join([*text, "every process of the run ends now"])
