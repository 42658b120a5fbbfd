"""Dropout inside experts alone: where it is, what it leaves as it was, and whose its draws are."""

import pytest
import torch

from sparse_mlp_ds.models.layers import Dropout
from tests.helpers.tiny_families import batch, make, size_of

SPARSE = {"vmoe": ["moe_c"], "widenet": ["moe_c"], "sparse_mlp": ["moe_s", "moe_c"]}


def with_experts(family, rate, **overrides):
    """A tiny model whose experts have a rate of their own."""
    spec = {kind: {"experts": 4, "hidden": 40, "dropout": rate} for kind in SPARSE[family]}
    return make(family, **spec, **overrides)


def rates(model):
    """Rates inside experts, and elsewhere."""
    found = [(name, module.rate) for name, module in model.named_modules() if isinstance(module, Dropout)]
    return {r for name, r in found if ".experts." in name}, {r for name, r in found if ".experts." not in name}


@pytest.mark.parametrize("family", SPARSE)
def test_experts_have_their_own_rate_and_as_many_parameters(family):
    elsewhere = {"vmoe": {0.1}, "widenet": set(), "sparse_mlp": {0.1}}[family]  # WideNet has no other MLP
    model = with_experts(family, 0.4, dropout=0.1)
    assert rates(model) == ({0.4}, elsewhere)
    assert rates(with_experts(family, 0.0, dropout=0.1)) == ({0.0}, elsewhere)
    assert rates(with_experts(family, None, dropout=0.1)) == ({0.1}, elsewhere)
    assert size_of(model) == size_of(with_experts(family, None))


@pytest.mark.parametrize("family", SPARSE)
def test_draws_belong_to_the_sample(family):
    model, (images, keys) = with_experts(family, 0.5), batch(16)
    whole, part = model.forward_features(images, keys)[0], slice(8, 16)  # a whole routing group
    torch.testing.assert_close(model.forward_features(images[part], keys[part])[0], whole[part])
    assert not torch.allclose(whole, with_experts(family, None).forward_features(images, keys)[0])
    still = model.forward_features(images)[0]
    torch.testing.assert_close(still, with_experts(family, None).forward_features(images)[0])


def test_the_one_mlp_in_the_place_of_experts_has_it_too():
    model = make("sparse_mlp", moe_c={"experts": 0, "hidden": 40, "dropout": 0.3}, dropout=0.1)
    found = {name: m.rate for name, m in model.named_modules() if isinstance(m, Dropout) and ".moe_c." in name}
    assert set(found.values()) == {0.3} and len(found) == 2
