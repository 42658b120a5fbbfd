"""Forward and backward passes, and whole steps with DeepSpeed's engine, of the models in every precision."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu_timing import Settings, Step, device, launches, measured, rate, waits_by_place
from sparse_mlp_ds import rng
from sparse_mlp_ds.models import cost, registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.sparse_mlp import MakeMoE
from sparse_mlp_ds.moe.router import Router

MODELS = ("mixer_b16", "sparse_mlp_b16", "mixer_l16", "sparse_mlp_l16", "vit_b16", "gmlp_s16")
PEERS = {"mixer_b16": "mixer_b16_224", "vit_b16": "vit_base_patch16_224", "gmlp_s16": "gmlp_s16_224"}
"""The same models in timm."""
TOYS = ("mixer_digits", "sparse_mlp_digits")
CLASSES = 1000
Case = tuple[str, Callable[[], dict]]


def cases(settings: Settings) -> Iterator[Case]:
    """Forward and backward in bf16, timm's models beside ours, then whole steps with the engine's update at ZeRO-2."""
    models = TOYS if settings.toy else MODELS
    for name in models:
        yield f"{name} bf16", lambda name=name: _timed(name, "bf16", settings)
    for name, peer in PEERS.items():
        if not settings.toy:
            yield f"timm {peer} bf16", lambda name=name, peer=peer: _peer(name, peer, settings)
    for name in models[:2] if settings.toy else models[:4]:
        yield f"{name} bf16 engine", lambda name=name: _engine(name, settings)


def precision_cases(settings: Settings) -> Iterator[Case]:
    """Forward and backward in float32, with TF32 and without."""
    for name in TOYS[1:] if settings.toy else MODELS:
        for precision in ("tf32", "fp32"):
            yield f"{name} {precision}", lambda name=name, precision=precision: _timed(name, precision, settings)


def kernel_cases(settings: Settings) -> Iterator[Case]:
    """What forward and backward in bf16 are made of: kernels by time, waits by line."""
    for name in TOYS if settings.toy else MODELS[:4]:
        yield f"{name} bf16", lambda name=name: _kernels(name, settings)


def model_for(name: str, precision: str, make_moe: MakeMoE = registry.local_moe) -> Backbone:
    """Build a model on the device, with weights that are quickly drawn; routers stay in float32, as in training."""
    with device():
        model = registry.build(registry.preset(name), CLASSES, make_moe)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif not parameter.isfinite().all():
            nn.init.zeros_(parameter)
    if precision == "bf16":
        model.to(torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Router):
            module.float()
    return model


def inputs(name: str, images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, labels and sample keys of a made-up batch."""
    side = registry.preset(name).image_size
    numbers = torch.arange(images, device=device())
    generator = torch.Generator(device()).manual_seed(0)
    pictures = torch.randn(images, 3, side, side, device=device(), generator=generator)
    return pictures, numbers % CLASSES, rng.sample_keys(0, numbers, "benchmark")


def passes(name: str, model: nn.Module, images: int) -> Step:
    """Return one forward and backward pass as a function that returns the loss."""
    pictures, labels, keys = inputs(name, images)

    def step() -> Tensor:
        model.zero_grad()
        logits, reports = model(pictures, keys)
        loss = nn.functional.cross_entropy(logits.float(), labels) + sum(r.balance for r in reports.values())
        loss.backward()
        return loss.detach()

    return step


def size_of(settings: Settings) -> int:
    """Return the images of a step."""
    return 16 if settings.toy else settings.images


def _timed(name: str, precision: str, settings: Settings) -> dict:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = precision == "tf32"
    try:
        images = size_of(settings)
        row = measured(passes(name, model_for(name, precision), images), settings)
        return row | rate(row, images, cost.cost(registry.preset(name)).macs, precision)
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def _peer(name: str, peer: str, settings: Settings) -> dict:
    import timm

    with device():
        model = timm.create_model(peer).to(torch.bfloat16).train()
    pictures, labels, _ = inputs(name, settings.images)
    pictures = pictures.to(torch.bfloat16)

    def step() -> None:
        model.zero_grad()
        nn.functional.cross_entropy(model(pictures).float(), labels).backward()

    row = measured(step, settings)
    return row | rate(row, settings.images, cost.cost(registry.preset(name)).macs, "bf16")


def _engine(name: str, settings: Settings) -> dict:
    """Time whole steps as the trainer takes them, with fused AdamW under ZeRO-2, and the update alone."""
    from sparse_mlp_ds.config.batch import BatchPlan
    from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
    from sparse_mlp_ds.config.recipe import MoE
    from sparse_mlp_ds.config.stages import Optimizer
    from sparse_mlp_ds.train import engine as engines

    images = size_of(settings)
    make_moe = engines.expert_parallel(MoE(), {"moe_s": 1, "moe_c": 1})
    config = DeepSpeedJson({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0})
    model = model_for(name, "fp32", make_moe)
    engine = engines.build(model, Optimizer(base_lr=1e-4), BatchPlan(images, images, 1), config)
    engines.set_learning_rate(engine, 1e-4)
    pictures, labels, keys = inputs(name, images)
    took: list[float] = []

    def step() -> None:
        logits, reports = engine(pictures, keys)
        engine.backward(nn.functional.cross_entropy(logits.float(), labels) + sum(r.balance for r in reports.values()))
        started = time.perf_counter()
        engine.step()
        took.append(1000 * (time.perf_counter() - started))

    row = measured(step, settings)
    row |= rate(row, images, cost.cost(registry.preset(name)).macs, "bf16")
    row |= {"update_host_ms": sorted(took)[len(took) // 2]} | launches(step)
    row["waits_by_place"] = waits_by_place(step)
    engine.destroy()
    return row


def _kernels(name: str, settings: Settings) -> dict:
    step = passes(name, model_for(name, "bf16"), size_of(settings))
    for _ in range(3):
        step()
    return launches(step, top=30) | {"waits_by_place": waits_by_place(step)}
