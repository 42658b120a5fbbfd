"""`python -m sparse_mlp_ds.doctor.measure REQUEST`: this host's ranks measure the network together with other hosts'.

REQUEST holds the fields of `network.Request` as JSON. A host with devices runs a rank for each of its slots, so that
all network cards are used, any other host one rank. Rank 0 prints the results on one line.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import median

import torch
import torch.distributed as torch_dist
from torch import Tensor

from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.distributed.network_model import Collective
from sparse_mlp_ds.doctor.facts import MARK
from sparse_mlp_ds.doctor.network import LIMIT_SECONDS, Measured, Pair, Request, Timing

_PINGS, _REPEATS = 20, 3
_LARGEST, _LONG_ENOUGH = 64 << 20, 0.05  # bytes; seconds


def main(text: str) -> int:
    """Run this host's ranks, or, in a process that has a rank, that rank; return the exit code."""
    fields = json.loads(text)
    request = Request(**fields | {"collectives": tuple(Collective(**c) for c in fields["collectives"])})
    if "RANK" in os.environ:
        with process_group.join(LIMIT_SECONDS):
            measured = _measure(request)
            if process_group.rank() == 0:
                print(MARK + json.dumps(asdict(measured)), flush=True)
        return 0
    ranks = [subprocess.Popen([*sys.orig_argv], env=os.environ | own) for own in _variables(request)]
    try:
        return max(abs(rank.wait()) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()


def _variables(request: Request) -> Iterator[dict[str, str]]:
    """Yield the environment variables of each rank of this host."""
    first, count = sum(request.ranks[: request.host]), request.ranks[request.host]
    for local in range(count):
        yield {
            "RANK": str(first + local),
            "WORLD_SIZE": str(sum(request.ranks)),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": request.address,
            "MASTER_PORT": str(request.port),
        }


def _measure(request: Request) -> Measured:
    host_of = [host for host, count in enumerate(request.ranks) for _ in range(count)]
    rank = process_group.rank()
    local = rank - host_of.index(host_of[rank])
    pairs = []
    for opponents in _rounds(len(request.ranks)):
        other = opponents.get(host_of[rank])
        comm.barrier()
        # Ranks of the same number on both hosts measure together, at the same time as all other pairs.
        if other is not None and local < min(request.ranks[other], request.ranks[host_of[rank]]):
            round_trip, bandwidth = _with(host_of.index(other) + local)
            pairs.append(Pair(min(host_of[rank], other), max(host_of[rank], other), round_trip, bandwidth))
    everywhere = comm.gather_objects((pairs, [_time(collective) for collective in request.collectives]))
    slowest = map(max, zip(*(seconds for _, seconds in everywhere), strict=True))
    timings = [Timing(*timed) for timed in zip(request.collectives, slowest, strict=True)]
    return Measured(_joined(pair for own, _ in everywhere for pair in own), timings)


def _rounds(hosts: int) -> Iterator[dict[int, int]]:
    """Yield rounds in which every host meets at most one other host, until all have met: host -> the other host.

    The circle method for round-robin tournaments; with an odd number of hosts, one has no opponent in each round.
    """
    circle = [*range(hosts), *([-1] if hosts % 2 else [])]
    for _ in range(len(circle) - 1):
        met = list(zip(circle[: len(circle) // 2], reversed(circle[len(circle) // 2 :]), strict=True))
        yield {a: b for pair in met for a, b in (pair, pair[::-1]) if -1 not in pair}
        circle = [circle[0], circle[-1], *circle[1:-1]]


def _with(other: int) -> tuple[float, float]:
    """Return the seconds to another rank and back, and the bytes per second in each direction, both used at once."""
    small = torch.zeros(8, dtype=torch.uint8, device=process_group.device())
    first = process_group.rank() < other
    seconds = []
    for _ in range(_PINGS):
        started = _now()
        for mine in (first, not first):
            torch_dist.send(small, other) if mine else torch_dist.recv(small, other)
        seconds.append(_now() - started)
    size, took = 64 << 10, 0.0
    while True:
        took = min(_exchange(size, other) for _ in range(_REPEATS))
        both = torch.tensor([took], dtype=torch.float64, device=process_group.device())
        theirs = torch.empty_like(both)
        _swap(both, theirs, other)
        took = max(float(both), float(theirs))  # the same on both, so that both stop at the same size
        if took >= _LONG_ENOUGH or size >= _LARGEST:
            return median(seconds), size / took
        size *= 8


def _exchange(size: int, other: int) -> float:
    """Return the seconds in which two ranks send each other `size` bytes at the same time."""
    data = torch.zeros(size, dtype=torch.uint8, device=process_group.device())
    received, started = torch.empty_like(data), _now()
    _swap(data, received, other)
    return _now() - started


def _swap(mine: Tensor, theirs: Tensor, other: int) -> None:
    sends = [torch_dist.P2POp(torch_dist.isend, mine, other), torch_dist.P2POp(torch_dist.irecv, theirs, other)]
    for work in torch_dist.batch_isend_irecv(sends):
        work.wait()


def _time(collective: Collective) -> float:
    """Return the seconds of one call of a collective, in all groups of its kind at the same time. Collective."""
    world, rank = process_group.world_size(), process_group.rank()
    block, group = collective.ranks * collective.stride, None
    for start in range(0, world, block):
        for offset in range(collective.stride):
            members = list(range(start + offset, start + block, collective.stride))
            made = torch_dist.new_group(members)
            group = made if rank in members else group
    count = (
        -(-collective.bytes // (4 * collective.ranks)) * collective.ranks
    )  # float32 numbers that divide over the ranks
    data = torch.zeros(count, device=process_group.device())
    calls: dict[str, Callable[[], object]] = {
        "all_to_all": lambda: torch_dist.all_to_all_single(torch.empty_like(data), data, group=group),
        "all_reduce": lambda: torch_dist.all_reduce(data, group=group),
        "all_gather": lambda: torch_dist.all_gather_into_tensor(
            data.new_empty(count * collective.ranks), data, group=group
        ),
    }
    seconds = []
    for _ in range(1 + _REPEATS):
        comm.barrier()
        started = _now()
        calls[collective.kind]()
        seconds.append(_now() - started)
    return median(seconds[1:])  # the first connects


def _joined(pairs: Iterator[Pair]) -> list[Pair]:
    """Return one pair of hosts for all of their ranks: their median round trip, and their bandwidths together."""
    by_hosts: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        by_hosts.setdefault((pair.first, pair.second), []).append(pair)
    # Both ranks of a pair report the same bandwidth.
    return [
        Pair(*hosts, median(p.round_trip for p in several), sum(p.bandwidth for p in several) / 2)
        for hosts, several in sorted(by_hosts.items())
    ]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
