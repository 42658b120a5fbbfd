"""One tiny model of every family, and the batch that goes through it."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights

SMALL = {"image_size": 16, "patch_size": 4, "width": 24, "depth": 3}
EXPERTS = {"moe_c": {"experts": 4, "hidden": 40}}
TINY = {
    "mixer": {"name": "mixer_digits", "dense_blocks": 2, "width": 24},
    "sparse_mlp": {"name": "sparse_mlp_digits", "dense_blocks": 1, "width": 24, "sparse_width": 20},
    "gmlp": {"name": "gmlp_ti16", **SMALL, "hidden": 48},
    "amlp": {"name": "amlp_ti16", **SMALL, "hidden": 48, "attention": 8},
    "resmlp": {"name": "resmlp_s12", **SMALL, "channel_hidden": 40, "layer_scale": 0.3},
    "vit": {"name": "vit_s16", **SMALL, "heads": 2, "channel_hidden": 32},
    "vmoe": {"name": "vmoe_s32_every2", **SMALL, "depth": 4, "heads": 2, "channel_hidden": 32, **EXPERTS},
    "widenet": {"name": "widenet_b16", **SMALL, "heads": 2, **EXPERTS},
    "deit": {"name": "vit_s16", **SMALL, "heads": 2, "channel_hidden": 32, "positions": "learned"}
    | {"distillation_token": True},
    "vit_moe": {"name": "vit_moe_b16", **SMALL, "heads": 2, "channel_hidden": 32, **EXPERTS},
}
"""Family of models of images, or variant of one -> a tiny model of it."""
ROW = {"length": 16, "vocabulary": 50, "width": 24, "depth": 3}
CHUNKS = {"sparse_blocks": 1, "moe_s": {"experts": 4, "hidden": 20, "chunk": 4}, "moe_c": {"experts": 4, "hidden": 40}}
TEXT = {
    "gmlp_text": {"name": "gmlp_text_speeches", **ROW, "hidden": 48},
    "amlp_text": {"name": "amlp_text_speeches", **ROW, "hidden": 48, "attention": 8, "pool": "mean"},
    "gmlp_linear": {"name": "gmlp_text_36_linear", **ROW, "hidden": 48},
    "gmlp_routed": {"name": "sparse_gmlp_text_speeches", **ROW, "hidden": 48, **EXPERTS},
    "gmlp_sparse": {"name": "gmlp_text_speeches", **ROW, "hidden": 48, **CHUNKS},
    "bert": {"name": "bert_speeches", **ROW, "heads": 2, "channel_hidden": 32},
    "bert_routed": {"name": "bert_speeches", **ROW, "heads": 2, "channel_hidden": 32, **EXPERTS},
    "mixer_text": {"name": "mixer_text_speeches", **ROW, "token_hidden": 12, "channel_hidden": 32},
}
"""The same of models of text."""
REPORTS = {
    "sparse_mlp": {"1.moe_s", "1.moe_c"},
    "vmoe": {"1.moe_c", "3.moe_c"},
    "widenet": {"0.moe_c", "1.moe_c", "2.moe_c"},
    "vit_moe": {"1.moe_c", "2.moe_c"},
    "gmlp_routed": {"1.moe_c", "2.moe_c"},
    "gmlp_sparse": {"2.moe_s", "2.moe_c"},
    "bert_routed": {"1.moe_c"},
}
families = pytest.mark.parametrize("family", TINY | TEXT)


def make(family, seed=0, **overrides):
    model = registry.build(model_spec((TINY | TEXT)[family] | overrides))
    init_weights(model, seed)
    return model


def batch(count=8, size=16, first=0, family="mixer"):
    """Return images, or rows of tokens for a family of text, and their keys."""
    generator = torch.Generator().manual_seed(1)
    if family in TEXT:
        inputs = torch.randint(ROW["vocabulary"], (count, ROW["length"]), generator=generator)
    else:
        inputs = torch.randn(count, 3, size, size, generator=generator)
    return inputs, rng.sample_keys(0, torch.arange(first, first + count), "test")


def on_meta(name, classes=0):
    with torch.device("meta"):
        return registry.build(registry.preset(name), classes)


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())
