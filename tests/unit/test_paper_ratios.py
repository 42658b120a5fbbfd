"""What the papers say in ratios, from the models here: sizes, work and items relative to one another."""

from functools import cache

import pytest
import torch

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.cost import cost
from sparse_mlp_ds.moe.capacity import slots

AS_WRITTEN = {"positions": "learned", "representation": True}
"""WideNet's code has both, and its ViTs too."""


@cache
def millions(name, classes=0, *changes):
    """Whole millions of parameters, cut off as the papers cut them."""
    with torch.device("meta"):
        model = registry.build(model_spec({"name": name, **dict(changes)}), classes)
    return sum(parameter.numel() for parameter in model.parameters()) // 10**6


def giga(name, **changes):
    return cost(model_spec({"name": name, **changes})).macs / 1e9


PARAMETERS = {
    # Sparse-MLP 3.2: Sparse-L has 62.8 % of Mixer-L's parameters
    "Sparse-L of Mixer-L": (("sparse_mlp_l16", 0), ("mixer_l16", 0), 62.8, 1),
    # WideNet's abstract: 0.72, 0.46 and 0.13 times the parameters
    "WideNet-H of ViT-B": (("widenet_h14", 1000), ("vit_b16", 1000, *AS_WRITTEN.items()), 72, 0),
    "WideNet-L of ViT-B": (("widenet_l16", 1000), ("vit_b16", 1000, *AS_WRITTEN.items()), 46, 0),
    "WideNet-L of ViT-L": (("widenet_l16", 1000), ("vit_l16", 1000, *AS_WRITTEN.items()), 13, 0),
}


@pytest.mark.parametrize(("one", "other", "percent", "digits"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_relative_to_one_another(one, other, percent, digits):
    assert round(100 * millions(*one) / millions(*other), digits) == percent


CUT = {
    # WideNet's table 1, whole millions with the head for 1000 classes
    "ViT-B": ("vit_b16", AS_WRITTEN, 87),
    "ViT-L": ("vit_l16", AS_WRITTEN, 305),
    "ViT-MoE-B": ("vit_moe_b16", {}, 128),
    "ViT-MoE-L": ("vit_moe_l16", {}, 406),
    "WideNet-B": ("widenet_b16", AS_WRITTEN, 29),
    "WideNet-L": ("widenet_l16", {}, 40),
    "WideNet-H": ("widenet_h14", {}, 63),
}


@pytest.mark.parametrize(("name", "changes", "printed"), CUT.values(), ids=CUT)
def test_all_sizes_of_widenets_table_are_cut_off(name, changes, printed):
    assert millions(name, 1000, *changes.items()) == printed


WORK = {
    # V-MoE 4: V-MoE-L/16 with experts in the last two of the odd blocks takes 39 % of ViT-H/14's operations
    "V-MoE-L last-2 of ViT-H": (("vmoe_l16_every2", {"moe_placement": "last2", "pool": "cls"}), ("vit_h14", {}), 39),
    # From Sparse-MLP's dimensions; the paper reports equal throughput of S, and 44 % more cost without re-represent
    "Sparse-S of Mixer-S": (("sparse_mlp_s16", {}), ("mixer_s16", {}), 145),
    "Sparse-B of Mixer-B": (("sparse_mlp_b16", {}), ("mixer_b16", {}), 107),
    "Sparse-B without re-represent of with": (
        ("sparse_mlp_b16", {"rerepresent": False, "moe_s": {"hidden": 384}, "moe_c": {"hidden": 3072}}),
        ("sparse_mlp_b16", {}),
        107,
    ),
}


@pytest.mark.parametrize(("one", "other", "percent"), WORK.values(), ids=WORK)
def test_multiply_accumulates_relative_to_one_another(one, other, percent):
    assert round(100 * giga(one[0], **one[1]) / giga(other[0], **other[1])) == percent


@pytest.mark.parametrize(
    ("name", "printed"), [("resmlp_s12", 3.0), ("resmlp_s24", 6.0), ("resmlp_s36", 8.9), ("resmlp_b24", 23.0)]
)
def test_multiply_accumulates_of_resmlp(name, printed):
    """ResMLP's table 1, in 10^9 (there called FLOPs)."""
    assert round(giga(name), 1) == printed


ITEMS = {
    # Sparse-MLP 2.3: what is routed per image, (items, length of an item), in MoE_S and in MoE_C
    "sparse_mlp_s16": ((512, 392), (392, 512)),
    "sparse_mlp_b16": ((384, 392), (392, 384)),
    "sparse_mlp_l16": ((384, 392), (392, 384)),
}


@pytest.mark.parametrize(("name", "items"), ITEMS.items())
def test_what_is_routed(name, items):
    spec, seen = registry.preset(name), {}

    class Routed(torch.nn.Module):
        def __init__(self, kind, dim, *_):
            super().__init__()
            self.kind = kind

        def forward(self, x, keys):
            seen[self.kind] = tuple(x.shape[1:])
            return x, None

    with torch.device("meta"):
        everywhere = {kind: {"experts": max(getattr(spec, kind).experts, 1)} for kind in ("moe_s", "moe_c")}
        block = registry.build(model_spec({"name": name, **everywhere}), make_moe=Routed).blocks[-1]
        block(torch.empty(1, spec.tokens, spec.width), None)
    assert (seen["moe_s"], seen["moe_c"]) == items


SLOTS = {
    # V-MoE's appendix: ceil(K N P C / E) slots for a group of N images with P patches, and its code's multiple of 4
    "S/32, 32 experts": ((8, 50, 2, 1.05, 32), 27, 28),
    "B/16, 32 experts": ((8, 197, 2, 1.05, 32), 104, 104),
    "S/32, 8 experts, fine-tuning": ((8, 50, 2, 1.5, 8), 150, 152),
}


@pytest.mark.parametrize(("setting", "exact", "in_fours"), SLOTS.values(), ids=SLOTS)
def test_slots_of_v_moe(setting, exact, in_fours):
    images, patches, top_k, factor, experts = setting
    assert slots(factor, images * patches * top_k, experts) == exact
    assert slots(factor, images * patches * top_k, experts, 4) == in_fours
