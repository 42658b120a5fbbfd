"""MoCo v3 at its smallest: recipes, images and the method itself, as tests of it need them."""

import dataclasses
from math import gcd
from types import SimpleNamespace

import torch
from torch import nn

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.train.moco import MoCo

BATCH, MOMENTUM = 16, 0.9


def recipe(family: str, contrast: str = "batch"):
    settings = ["model.name=sparse_mlp_digits", "model.drop_path=0.2", "model.dropout=0.1"]
    if family == "vit":
        shape = {"name": "vit_s16", "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
        settings = [f"model={shape | {'channel_hidden': 32}}"]
    stage = {"hidden": 24, "dim": 8, "momentum": MOMENTUM, "freeze_patch": True, "contrast": contrast}
    settings += [f"stages.pretrain.{key}={str(value).lower()}" for key, value in stage.items()]
    return load_recipe("digits", [*settings, "moe.group_images=2", "moe.capacity_factor_c=0.75"])


def images(places: torch.Tensor) -> Batch:
    pixels = torch.randint(0, 256, (BATCH, 2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    fields = {"inputs": pixels[places], "labels": torch.zeros(len(places)).long(), "numbers": places}
    return Batch(**fields, **{f.name: () for f in dataclasses.fields(Batch) if f.name not in fields})


def wake(module: nn.Module) -> None:
    """Draw affine weights of the norms, whose initial ones hide mistakes; alike on every rank."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and ".experts." not in name:
            parameter.data = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)


def method(made, world: int, batch: BatchPlan | None = None, precision: str = "float32"):
    """MoCo v3 of a recipe, its experts on as many ranks as can be, without data or a run folder around it."""
    order = SimpleNamespace(steps_per_epoch=10)
    job = SimpleNamespace(
        recipe=made,
        ds_config=SimpleNamespace(precision=precision),
        stage=lambda name, _: made.stages[name],
        world=world,
        ep_sizes={kind: gcd(world, 4) for kind in made.spec.experts},
        batches={"pretrain": batch or BatchPlan.over(world, BATCH)},
        steps=lambda _: 10,
        order=lambda _: order,
        negatives=lambda _: 0,
    )
    built = MoCo(job, "pretrain")
    wake(built.module)
    return built
