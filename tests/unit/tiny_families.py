"""One tiny model of every family, and the batch that goes through it."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.recipe import model_spec

SMALL = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 3}
EXPERTS = {"moe_c": {"experts": 4, "hidden": 40}}
TINY = {
    "mixer": {"name": "mixer_digits", "dense_blocks": 2, "width": 24},
    "sparse_mlp": {"name": "sparse_mlp_digits", "dense_blocks": 1, "width": 24, "sparse_width": 20},
    "gmlp": {"name": "gmlp_ti16", **SMALL, "hidden": 48},
    "amlp": {"name": "amlp_ti16", **SMALL, "hidden": 48, "attention": 8},
    "vit": {"name": "vit_s16", **SMALL, "heads": 2, "channel_hidden": 32},
    "vmoe": {"name": "vmoe_s32_every2", **SMALL, "depth": 4, "heads": 2, "channel_hidden": 32, **EXPERTS},
    "widenet": {"name": "widenet_b16", **SMALL, "heads": 2, **EXPERTS},
}
REPORTS = {
    "sparse_mlp": {"1.moe_s", "1.moe_c"},
    "vmoe": {"1.moe_c", "3.moe_c"},
    "widenet": {"0.moe_c", "1.moe_c", "2.moe_c"},
}
families = pytest.mark.parametrize("family", TINY)


def make(family, seed=0, **overrides):
    model = registry.build(model_spec(TINY[family] | overrides))
    init_weights(model, seed)
    return model


def batch(count=8, size=16, first=0):
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return images, rng.sample_keys(0, torch.arange(first, first + count), "test")


def on_meta(name, classes=0):
    with torch.device("meta"):
        return registry.build(registry.preset(name), classes)


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())
