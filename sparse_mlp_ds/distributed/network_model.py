"""How long a collective should take on a cluster of GPU nodes, from its bytes and the cluster's data sheets.

    seconds = calls x latency + bytes / bandwidth

docs/scaling.md lists the assumptions and what follows from them.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Collective:
    """The calls of one kind of collective for one purpose."""

    what: str
    """The purpose."""
    kind: str
    """`all_to_all`, `all_reduce` or `all_gather`."""
    ranks: int
    """Ranks of the group that takes part."""
    stride: int
    """Distance between neighbours in the group: 1 for consecutive ranks."""
    bytes: int
    """Bytes that one rank contributes, over all calls."""
    calls: int = 1
    """Number of calls."""


@dataclass(frozen=True)
class Cluster:
    """A cluster of GPU nodes: figures from the data sheets of H100 SXM and ConnectX-7, and assumptions."""

    node: int = 8
    """GPUs in a node, each with a network card of its own."""
    peak: float = 989e12
    """bf16 operations per second of a GPU's tensor cores (data sheet, dense)."""
    peak_float32: float = 67e12
    """float32 operations per second, TF32 off, as torch has it (data sheet)."""
    efficiency: float = 0.35
    """Share of the bf16 peak that a whole step reaches, with everything that is no matrix product (assumed)."""
    efficiency_float32: float = 0.7
    """Share of the float32 peak that a whole step reaches; higher, as the slow products outweigh the rest (assumed)."""
    near: float = 450e9
    """Bytes per second and direction between a GPU and its node (NVLink 4, data sheet)."""
    far: float = 50e9
    """Bytes per second and direction between a GPU and other nodes (400 Gbit/s, data sheet)."""
    reached: float = 0.8
    """Share of both bandwidths that a collective reaches (assumed)."""
    launch: float = 10e-6
    """Seconds until the first byte of a collective is sent (assumed)."""
    near_latency: float = 2e-6
    """Seconds per hop of a collective inside a node (assumed)."""
    far_latency: float = 8e-6
    """Seconds per hop of a collective between nodes (assumed)."""


def seconds(collective: Collective, cluster: Cluster) -> float:
    """Return how long a collective's calls take, one after the other."""
    ranks = collective.ranks
    inside = min(ranks, max(cluster.node // collective.stride, 1))  # ranks of the group in one node
    nodes = math.ceil(ranks / inside)
    near, far = cluster.near * cluster.reached, cluster.far * cluster.reached
    if collective.kind == "all_to_all":  # all pairs at once; NVLink and the network work side by side
        latency = cluster.launch + (cluster.near_latency if nodes == 1 else cluster.far_latency)
        size = collective.bytes / ranks
        return collective.calls * latency + max(size * (inside - 1) / near, size * (ranks - inside) / far)
    # Trees for the latency; for the bytes, rings through all nodes, one per network card of the group in a node.
    passes, size = (2, collective.bytes / ranks) if collective.kind == "all_reduce" else (1, collective.bytes)
    climb = _levels(inside) * cluster.near_latency + _levels(nodes) * cluster.far_latency
    bandwidth = near if nodes == 1 else min(near, inside * far)
    return collective.calls * (cluster.launch + passes * climb) + passes * (ranks - 1) * size / bandwidth


def _levels(ranks: int) -> int:
    return math.ceil(math.log2(ranks))
