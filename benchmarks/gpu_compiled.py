"""Blocks compiled as `train.compile` compiles them: whether they compute the same, and how fast they are."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.gpu_steps import MODELS, TOYS, model_for, passes, size_of
from benchmarks.gpu_timing import Settings, device, measured, rate, synchronize
from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import cost, registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.train import compiled

SMALL = {"image_size": 64, "width": 64, "depth": 3}
EXPERTS = {"moe_c": {"experts": 4, "hidden": 64}}
FAMILIES = {
    "sparse_mlp": {"name": "sparse_mlp_t4", "drop_path": 0.2},
    "mixer": {"name": "mixer_t4", "drop_path": 0.2},
    "gmlp": {"name": "gmlp_ti16", **SMALL, "hidden": 128, "drop_path": 0.2},
    "amlp": {"name": "amlp_ti16", **SMALL, "hidden": 128},
    "resmlp": {"name": "resmlp_s12", **SMALL, "channel_hidden": 128},
    "vit": {"name": "vit_s16", **SMALL, "heads": 2, "channel_hidden": 128},
    "vmoe": {"name": "vmoe_s32_every2", **SMALL, "depth": 4, "heads": 2, "channel_hidden": 128, **EXPERTS},
    "widenet": {"name": "widenet_b16", **SMALL, "heads": 2, **EXPERTS},
}
"""Small models of all families; sparse ones have experts in grouped products in bf16, in a loop in float32."""
NEAR = {"bf16": 0.03, "fp32": 1e-4}
"""By how much of its norm a result may differ."""
NEAR_WITH_EXPERTS = 0.3
"""The same in bf16 for features of a model with experts: one item in a hundred that goes elsewhere after another
rounding makes 0.14. Its gradients are told and not judged."""
Case = tuple[str, Callable[[], dict]]


def same_cases(settings: Settings) -> Iterator[Case]:
    """All families beside themselves without compilation."""
    for family in ("sparse_mlp", "mixer") if settings.toy else FAMILIES:
        for precision in NEAR:
            yield f"{family} {precision}", lambda f=family, p=precision: _same(f, p, settings)


def cases(settings: Settings) -> Iterator[Case]:
    """Forward and backward passes of the large models in bf16."""
    for name in TOYS if settings.toy else MODELS:
        yield f"{name} bf16 compiled", lambda name=name: _compiled(name, settings)


def _same(family: str, precision: str, settings: Settings) -> dict:
    """Compare features and gradients with those of the model that is not compiled."""
    spec = model_spec(FAMILIES[family])
    model = registry.build(spec)
    init_weights(model, 0)
    model.to(device(), torch.bfloat16 if precision == "bf16" else torch.float32)
    for module in model.modules():
        if isinstance(module, Router):
            module.float()
    expected = _results(model, spec.image_size)
    graphs = _compile(model, settings)
    off = [_difference(found, one) for found, one in zip(_results(model, spec.image_size), expected, strict=True)]
    row = {"features": off[0], "gradients": off[1], "graphs": graphs(), "breaks": sum(counters["graph_break"].values())}
    routed = precision == "bf16" and any(isinstance(module, Router) for module in model.modules())
    if not (off[0] < NEAR_WITH_EXPERTS if routed else max(off) < NEAR[precision]):
        raise RuntimeError(f"compiled blocks differ: {row}")
    return row


def _results(model: nn.Module, side: int) -> tuple[Tensor, Tensor]:
    """Return features, and all gradients as one vector, of a made-up batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, side, side, generator=generator).to(model.patch_embed.proj.weight)
    keys = rng.sample_keys(0, torch.arange(32, device=device()), "benchmark")
    model.zero_grad()
    features, reports = model.forward_features(images, keys)
    wanted = torch.randn(features.shape, generator=generator).to(features)
    ((features * wanted).sum() + sum(report.balance for report in reports.values())).backward()
    gradients = [parameter.grad.flatten().float() for parameter in model.parameters() if parameter.grad is not None]
    return features.detach().float(), torch.cat(gradients)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _compile(model: nn.Module, settings: Settings) -> Callable[[], int]:
    """Compile a model's blocks; return a function that says how many graphs have been made for them."""
    counters.clear()
    compiled.BACKEND = "aot_eager" if settings.toy else "inductor"
    compiled.compile_blocks([model])
    return lambda: counters["stats"]["unique_graphs"]


def _compiled(name: str, settings: Settings) -> dict:
    model, images = model_for(name, "bf16"), size_of(settings)
    graphs = _compile(model, settings)
    step = passes(name, model, images)
    started = time.perf_counter()
    step()
    synchronize()
    row: dict = {"compile_seconds": time.perf_counter() - started}
    row |= measured(step, settings)
    row |= rate(row, images, cost.cost(registry.preset(name)).macs, "bf16")
    return row | {"graphs": graphs(), "breaks": sum(counters["graph_break"].values())}
