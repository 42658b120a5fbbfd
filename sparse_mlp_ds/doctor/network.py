"""Measures the network between hosts as a run would use it, and says which host is slow."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median

from sparse_mlp_ds.distributed.network_model import Cluster, Collective, seconds
from sparse_mlp_ds.doctor import ask, remote
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.errors import UserError

MODULE = "sparse_mlp_ds.doctor.measure"
"""Module that each host runs to take part."""
LIMIT_SECONDS = 120.0
"""Longest time of the whole measurement."""
SLOW = 2.0
"""A host is slow if its bandwidth is less by this factor, or its round trip longer, than those of the other hosts."""
LEAST_ROUND_TRIP = 0.5e-3
"""Seconds by which a round trip must be longer than among the other hosts to count: less is chance."""
ORDINARY = (8, 1 << 20, 16 << 20)
"""Bytes per rank of the collectives that are timed when no recipe says which ones a run has."""


@dataclass(frozen=True)
class Timing:
    """A collective that was timed."""

    collective: Collective
    """What was timed, as one call."""
    seconds: float
    """Seconds on the rank where it took longest."""


@dataclass(frozen=True)
class Request:
    """What a host is asked to take part in."""

    ranks: tuple[int, ...]
    """Number of ranks of each host, in the order of the hostfile."""
    address: str
    """Address of the first host."""
    port: int
    """Port at which rank 0 listens."""
    collectives: tuple[Collective, ...]
    """What to time, one call each."""
    host: int = 0
    """Number of the host that is asked."""


@dataclass(frozen=True)
class Pair:
    """Two hosts, by their numbers in the hostfile."""

    first: int
    second: int
    round_trip: float
    """Seconds for 8 bytes there and back."""
    bandwidth: float
    """Bytes per second in each direction, while both are used, over all ranks of a host."""


@dataclass(frozen=True)
class Measured:
    """What rank 0 reports."""

    pairs: list[Pair]
    timings: list[Timing]


def ordinary(world: int) -> list[Collective]:
    """Return collectives of all ranks, for when no recipe says which ones a run has."""
    kinds = ("all_to_all", "all_reduce", "all_gather")
    return [Collective("", kind, world, 1, size) for kind in kinds for size in ORDINARY]


def ranks(answers: Sequence[Answer]) -> list[int]:
    """Return the number of ranks that measure on each host: its slots where it has devices, else one."""
    return [(answer.host.slots or 1) if answer.facts and answer.facts.devices else 1 for answer in answers]


def measure(answers: Sequence[Answer], collectives: Sequence[Collective], port: int) -> Measured:
    """Let all hosts measure together. Raises UserError with one line per host that could not take part.

    Args:
        answers: the hosts, which all answered.
        collectives: what to time; equal sizes are timed once.
        port: where rank 0 listens on the first host.
    """
    names = [answer.host.name for answer in answers]
    single = dict.fromkeys(replace(c, bytes=c.bytes // c.calls, calls=1) for c in collectives)
    shells = ask.Shells()
    try:
        # As DeepSpeed's launcher finds the address of rank 0's host.
        address = shells.run(names[0], "hostname -I", ask.LIMIT_SECONDS).split()[0]
    except (ValueError, IndexError) as error:
        raise UserError(f"{names[0]}: its address is not known ({error}); `ssh {names[0]} hostname -I` has to print it")
    request = Request(tuple(ranks(answers)), address, port, tuple(single))

    def take_part(number: int) -> tuple[str, str]:
        """Return what a host printed, and why it could not take part; one of the two is empty."""
        command = remote.command(MODULE, replace(request, host=number))
        try:
            return shells.run(names[number], command, LIMIT_SECONDS), ""
        except ValueError as error:
            return "", str(error)

    with ThreadPoolExecutor(len(names)) as pool:
        try:
            answered = list(pool.map(take_part, range(len(names))))
        except BaseException:
            shells.end()
            raise
    failed = [(name, error) for name, (_, error) in zip(names, answered, strict=True) if error]
    if failed:
        raise UserError("\n".join(f"{name}: measuring the network: {error}" for name, error in failed))
    try:
        return remote.answer(answered[0][0], Measured)
    except ValueError as error:
        raise UserError(f"{names[0]}: measuring the network: {error}") from None


def slow_hosts(measured: Measured, names: Sequence[str]) -> list[str]:
    """Return a line for each host whose connections are slower than those of the other hosts among each other.

    With two hosts there is one connection, which does not say whose fault it is.
    """
    lines = []
    for number, name in enumerate(names):
        own = [pair for pair in measured.pairs if number in (pair.first, pair.second)]
        others = [pair for pair in measured.pairs if number not in (pair.first, pair.second)]
        if not own or not others:
            continue
        trip, usual_trip = (median(p.round_trip for p in pairs) for pairs in (own, others))
        rate, usual_rate = (median(p.bandwidth for p in pairs) for pairs in (own, others))
        if rate * SLOW < usual_rate or trip > max(SLOW * usual_trip, usual_trip + LEAST_ROUND_TRIP):
            lines.append(
                f"{name}: its network is slow: {rate / 1e6:.0f} MB/s and {1e3 * trip:.1f} ms there and back, where the "
                f"other hosts have {usual_rate / 1e6:.0f} MB/s and {1e3 * usual_trip:.1f} ms among each other; look at "
                f"its cable and switch port, its interface (ethtool), and what else uses it"
            )
    return lines


def assumed(answers: Sequence[Answer], measured: Measured) -> tuple[Cluster, str]:
    """Return the cluster that the timings are compared with, and where its figures are from.

    On hosts with devices it is that of docs/scaling.md; on others it has the bandwidth and the round trip that the
    pairs of hosts reached.
    """
    counts = ranks(answers)
    if all(answer.facts and answer.facts.devices for answer in answers):
        return Cluster(node=max(counts)), "docs/scaling.md"
    rate = median(pair.bandwidth for pair in measured.pairs)
    trip = median(pair.round_trip for pair in measured.pairs)
    return Cluster(node=1, near=rate, far=rate, reached=1.0, launch=0.0, far_latency=trip), "the pairs of hosts"


def show(answers: Sequence[Answer], measured: Measured) -> None:
    """Print two tables: each host's connections, and the collectives beside what they should take."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    hosts = Table(title="network, median over a host's connections", box=None, padding=(0, 1, 0, 0))
    for head in ("host", "ranks", "there and back", "each direction"):
        hosts.add_column(head, justify="left" if head == "host" else "right")
    for number, (answer, count) in enumerate(zip(answers, ranks(answers), strict=True)):
        own = [pair for pair in measured.pairs if number in (pair.first, pair.second)]
        trip, rate = median(pair.round_trip for pair in own), median(pair.bandwidth for pair in own)
        hosts.add_row(answer.host.name, str(count), f"{1e3 * trip:.2f} ms", f"{rate / 1e6:.0f} MB/s")
    console.print(hosts)
    cluster, source = assumed(answers, measured)
    table = Table(title=f"collectives; expected: from {source}", box=None, padding=(0, 1, 0, 0))
    for head in ("what", "collective", "ranks", "bytes per rank", "took", "expected", "ratio"):
        table.add_column(head, justify="left" if head in ("what", "collective") else "right")
    for timing in measured.timings:
        c, expected = timing.collective, seconds(timing.collective, cluster)
        took = (f"{1e3 * timing.seconds:.2f} ms", f"{1e3 * expected:.2f} ms", f"{timing.seconds / expected:.1f}")
        table.add_row(c.what, c.kind.replace("_", "-"), str(c.ranks), f"{c.bytes:,}", *took)
    console.print(table)
