"""A model with paper and pencil of a training step on GPUs: compute, plus what each collective takes, one by one.

    step = MACs / rate + sum over collectives (latency + bytes / bandwidth) - what is hidden behind compute

No GPU was at hand: `Cluster` holds what was assumed. `python -m benchmarks.scaling_model` prints what docs/scaling.md
shows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from benchmarks import scaling_counts
from benchmarks.scaling_counts import Collective
from benchmarks.scaling_report import print_table
from sparse_mlp_ds.models import macs, registry
from sparse_mlp_ds.models.spec import MixerSpec, MoESpec

BF16 = 2
BATCH, CLASSES, HIDDEN, DIM = 4096, 1000, 4096, 256
"""Images of a step; ImageNet's classes; MoCo v3's heads: as in the recipes."""
PARTS = {
    "rows": "rows", "row counts": "rows", "dense gradients": "gradients", "experts gradients": "gradients",
    "dense weights": "weights", "experts weights": "weights", "dense masters": "masters", "experts masters": "masters",
}  # fmt: skip
"""What a collective is for -> column of the tables; the others are small."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs: an H100 SXM's and a ConnectX-7's data sheets, and assumptions."""

    node: int = 8
    """GPUs in a node, each with a network card of its own."""
    peak: float = 989e12
    """bf16 operations per second of a GPU's tensor cores (data sheet, dense)."""
    peak_float32: float = 67e12
    """float32 operations per second, TF32 off, as torch has it (data sheet)."""
    efficiency: float = 0.35
    """Share of the peaks that a step's matrix products reach, everything else counted in (assumed)."""
    efficiency_float32: float = 0.7
    """The same of the float32 peak: where products are slow, the rest counts for less (assumed)."""
    near: float = 450e9
    """Bytes per second and direction between a GPU and its node (NVLink 4, data sheet)."""
    far: float = 50e9
    """The same between a GPU and other nodes (400 Gbit/s, data sheet)."""
    reached: float = 0.8
    """Share of both that a collective reaches (assumed)."""
    launch: float = 10e-6
    """Seconds before a collective's first byte leaves (assumed)."""
    near_latency: float = 2e-6
    """Seconds per hop of a collective inside a node (assumed)."""
    far_latency: float = 8e-6
    """The same between nodes (assumed)."""


@dataclass(frozen=True)
class Step:
    """A predicted step."""

    compute: float
    """Seconds."""
    parts: dict[str, float]
    """Seconds of communication, by what it is for."""
    images: int
    """Of the global batch."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + sum(self.parts.values())


def seconds(collective: Collective, cluster: Cluster) -> float:
    """Return how long a collective's calls take, one after the other."""
    ranks = collective.ranks
    inside = min(ranks, max(cluster.node // collective.stride, 1))  # of its ranks, those in one node
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


def predict(
    spec: MixerSpec,
    stage: str,
    world: int,
    ep: Mapping[str, int],
    batch: int,
    cluster: Cluster = Cluster(),
    hidden: float = 0.0,
) -> Step:
    """Return the step of a stage, `supervised` or `pretrain` (MoCo v3), in bf16 with ZeRO 1 or 2.

    ep: ranks that share one set of experts, by kind. batch: images over all ranks. hidden: share of the gradients'
    reduction that runs beside the backward pass; DeepSpeed's default bucket holds all of them, so nothing does.
    """
    images = batch // world
    parts: dict[str, float] = {}
    for collective in _collectives(spec, stage, world, tuple(ep.items()), images):
        part = PARTS.get(collective.what, "small")
        shown = 1 - hidden if part == "gradients" else 1
        parts[part] = parts.get(part, 0.0) + shown * seconds(collective, cluster)
    in_bf16, in_float32 = _macs(spec, stage)
    rate, rate_float32 = cluster.peak * cluster.efficiency, cluster.peak_float32 * cluster.efficiency_float32
    return Step(2 * images * (in_bf16 / rate + in_float32 / rate_float32), parts, batch)


@cache
def _collectives(spec: MixerSpec, stage: str, world: int, ep: tuple, images: int) -> list[Collective]:
    if stage == "supervised":
        return scaling_counts.supervised(spec, CLASSES, world, dict(ep), images, BF16)
    return scaling_counts.pretraining(spec, HIDDEN, DIM, world, dict(ep), images, BF16)


@cache
def _macs(spec: MixerSpec, stage: str) -> tuple[int, int]:
    """Multiply-accumulates per image, in bf16 and in float32; a backward pass is two forward ones."""
    backbone = macs.cost(spec).macs
    if stage == "supervised":
        return 3 * (backbone + spec.width * CLASSES), 0
    net = scaling_counts.online_net(spec, HIDDEN, DIM)
    projector, predictor = (
        sum(p.numel() for p in m.parameters() if p.ndim == 2) for m in (net.projector, net.predictor)
    )
    # Two crops through the online net, and through the float32 momentum net without a way back.
    return 2 * 3 * (backbone + projector + predictor), 2 * (backbone + projector)


def more_experts(spec: MixerSpec, experts: int) -> MixerSpec:
    """Return the model with so many experts of both kinds: more weights, but no more MACs."""
    more = lambda moe: MoESpec(**moe.model_dump() | {"experts": experts})  # noqa: E731
    return spec.model_copy(update={"moe_s": more(spec.moe_s), "moe_c": more(spec.moe_c)})


def layouts() -> list[tuple[str, MixerSpec, dict[str, int]]]:
    """(name, model, ep) of what is predicted: as published, and with 64 experts of both kinds."""
    b, large = registry.preset("sparse_mlp_b16"), registry.preset("sparse_mlp_l16")
    both = lambda ep: {"moe_s": ep, "moe_c": ep}  # noqa: E731
    wide = [(f"Sparse-B, 64 experts, ep {ep}", more_experts(b, 64), both(ep)) for ep in (1, 8, 32, 64)]
    return [
        ("Sparse-B, ep 1", b, both(1)),
        ("Sparse-B, ep 8 and 4", b, {"moe_s": 8, "moe_c": 4}),
        ("Sparse-L, ep 1", large, both(1)),
        ("Sparse-L, ep 8 and 4", large, {"moe_s": 8, "moe_c": 4}),
        ("Sparse-L, ep 16 and 4", large, {"moe_s": 16, "moe_c": 4}),
        *wide,
    ]


def main() -> None:
    """Print the tables, as Markdown."""
    columns = ("compute", "rows", "gradients", "weights", "masters", "small")
    for stage in ("supervised", "pretrain"):
        for world in (32, 512):
            rows = []
            for name, spec, ep in layouts():
                if world % max(ep.values()) == 0:
                    step = predict(spec, stage, world, ep, BATCH)
                    times = [step.compute, *(step.parts.get(column, 0.0) for column in columns[1:]), step.seconds]
                    share = f"{100 * step.compute / step.seconds:.0f} %"
                    rows.append(
                        (name, *(f"{1000 * t:.1f}" for t in times), f"{BATCH / step.seconds / 1000:.0f} k", share)
                    )
            print_table((f"{stage}, {world} GPUs; ms", *columns, "step", "images/s", "compute's share"), rows)
    print_table(*_what_if())


def _what_if() -> tuple[list[str], list[list[str]]]:
    """One assumption at a time: head and rows."""
    plain, b = Cluster(), registry.preset("sparse_mlp_b16")
    slow = {"launch": 2 * plain.launch, "near_latency": 2 * plain.near_latency, "far_latency": 2 * plain.far_latency}
    idle = {"efficiency": plain.efficiency / 2, "efficiency_float32": plain.efficiency_float32 / 2}
    tf32 = {"peak_float32": plain.peak / 2, "efficiency_float32": plain.efficiency}
    cases = {
        "as assumed": (plain, 0.0),
        "half the efficiency of compute": (replace(plain, **idle), 0.0),
        "half the bandwidth, near and far": (replace(plain, reached=plain.reached / 2), 0.0),
        "twice the latencies": (replace(plain, **slow), 0.0),
        "gradients hidden behind the backward pass": (plain, 1.0),
        "momentum net in TF32": (replace(plain, **tf32), 0.0),
    }
    published, wide = {"moe_s": 8, "moe_c": 4}, {"moe_s": 64, "moe_c": 64}
    runs = [(b, stage, world, published) for stage in ("supervised", "pretrain") for world in (32, 512)]
    runs.append((more_experts(b, 64), "supervised", 512, wide))
    head = [f"{stage}, {world}" + ", 64 experts" * (ep is wide) for _, stage, world, ep in runs]
    rows = []
    for name, (cluster, hidden) in cases.items():
        steps = [predict(*run, BATCH, cluster, hidden) for run in runs]
        rows.append([name, *(f"{1000 * step.seconds:.1f}" for step in steps)])
    return ["Sparse-B; ms per step", *head], rows


if __name__ == "__main__":
    main()
