"""Predicts the time of a training step on GPUs: that of compute, plus that of each collective.

    step = MACs / rate + sum over collectives (latency + bytes / bandwidth) - what is hidden behind compute

The prediction was made without a GPU; `Cluster` holds its assumptions. `python -m benchmarks.scaling_model` prints the
tables of docs/scaling.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.scaling_report import print_table
from sparse_mlp_ds.distributed.network_model import Cluster, Collective, seconds
from sparse_mlp_ds.models import cost, registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.spec import MixerSpec
from sparse_mlp_ds.train import step_collectives

BF16 = 2
BATCH, CLASSES, HIDDEN, DIM = 4096, 1000, 4096, 256
"""Images of a step, classes of ImageNet, and hidden and output width of MoCo v3's heads, as in the recipes."""
PARTS = {
    "rows": "rows", "row counts": "rows", "dense gradients": "gradients", "experts gradients": "gradients",
    "dense weights": "weights", "experts weights": "weights", "dense masters": "masters", "experts masters": "masters",
}  # fmt: skip
"""Purpose of a collective -> column of the tables; all other collectives are in the column `small`."""


@dataclass(frozen=True)
class Step:
    """The prediction for a step."""

    compute: float
    """Seconds of compute."""
    parts: dict[str, float]
    """Seconds of communication, by purpose."""
    images: int
    """Images of the global batch."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute + sum(self.parts.values())


def predict(
    spec: MixerSpec,
    stage: str,
    world: int,
    ep: Mapping[str, int],
    batch: int,
    cluster: Cluster = Cluster(),
    hidden: float = 0.0,
) -> Step:
    """Return the prediction for a step in bf16 with ZeRO 1 or 2.

    Args:
        spec: The model.
        stage: `supervised`, or `pretrain` for MoCo v3.
        world: Number of GPUs.
        ep: Ranks that share one set of experts, by mixing type.
        batch: Images over all ranks.
        cluster: The assumptions.
        hidden: Share of the reduction of gradients that runs during the backward pass. It is 0 with DeepSpeed's default
            bucket, which holds all gradients.
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
        return step_collectives.supervised(spec, CLASSES, world, dict(ep), images, BF16)
    return step_collectives.pretraining(spec, HIDDEN, DIM, world, dict(ep), images, BF16)


@cache
def _macs(spec: MixerSpec, stage: str) -> tuple[int, int]:
    """Return multiply-accumulates per image in bf16 and in float32; a backward pass counts as two forward passes."""
    backbone = cost.cost(spec).macs
    if stage == "supervised":
        return 3 * (backbone + spec.width * CLASSES), 0
    net = step_collectives.online_net(spec, HIDDEN, DIM)
    projector, predictor = (
        sum(p.numel() for p in m.parameters() if p.ndim == 2) for m in (net.projector, net.predictor)
    )
    # Two crops go through the online net, and through the float32 momentum net without a backward pass.
    return 2 * 3 * (backbone + projector + predictor), 2 * (backbone + projector)


def more_experts(spec: MixerSpec, experts: int) -> MixerSpec:
    """Return the model with this number of experts of both kinds: it has more weights, but as many MACs."""
    more = lambda moe: MoESpec(**moe.model_dump() | {"experts": experts})  # noqa: E731
    return spec.model_copy(update={"moe_s": more(spec.moe_s), "moe_c": more(spec.moe_c)})


def layouts() -> list[tuple[str, MixerSpec, dict[str, int]]]:
    """Return name, model and ep of each prediction: models as published, and with 64 experts of both kinds."""
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
    """Return head and rows of the table in which one assumption at a time is different."""
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
