"""What the MoE layer promises about idle experts, evaluation, routing groups and its report."""

import math

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe import stats
from sparse_mlp_ds.moe.layer import MoELayer, Routing

IMAGES, ITEMS, DIM, EXPERTS = 8, 3, 6, 4


def make(experts=EXPERTS, top_k=2, **routing):
    layer = MoELayer(DIM, experts, top_k, lambda: Mlp(DIM, 10), Routing(**{"group_images": 2} | routing))
    init_weights(layer, seed=0)
    with torch.no_grad():
        layer.router.weight *= 3  # clear preferences
        for expert in layer.experts.values():
            expert.fc2.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    return layer


def batch(images=IMAGES, seed=0):
    x = torch.randn(images, ITEMS, DIM, generator=torch.Generator().manual_seed(seed))
    return x, rng.sample_keys(5, torch.arange(images), "test")


def route(layer, x, keys):
    """Each item's noise-free logits and noisy logits, [B][T] of [E], and its chosen (weight, expert) pairs."""
    images, items, _ = x.shape
    experts = layer.num_experts
    logits = [[layer.router.weight @ x[b, t] for t in range(items)] for b in range(images)]
    noisy = logits
    if keys is not None and layer.routing.noise:
        noise = rng.normal(keys, layer.router.stream, items * experts) * (layer.routing.noise / experts)
        noisy = [
            [logits[b][t] + noise[b, t * experts : (t + 1) * experts] for t in range(items)] for b in range(images)
        ]
    gates = [[noisy[b][t].softmax(dim=0) for t in range(items)] for b in range(images)]
    ranked = [[gates[b][t].argsort(descending=True)[: layer.router.top_k] for t in range(items)] for b in range(images)]
    return logits, noisy, gates, ranked


@pytest.mark.parametrize("routing", [{}, {"priority": "expert_choice"}])
def test_a_shared_expert_serves_every_item_with_weight_one(routing):
    layer, (x, keys) = make(**routing), batch()
    shared = Mlp(DIM, 5)
    init_weights(shared, seed=3)
    for dense in (False, True):  # the second as in a graph that is exported
        for now in (keys, None):
            layer.runs_all, layer.shared = dense, None
            alone, report = layer(x, now)
            layer.shared = shared
            both, with_shared = layer(x, now)
            torch.testing.assert_close(both, alone + shared(x))
            assert torch.equal(report.balance, with_shared.balance)
    assert {name for name, _ in layer.named_parameters() if "shared" in name} == {
        f"shared.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    }


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_an_expert_that_nobody_chose_gets_a_zero_gradient(with_keys):
    layer = make(top_k=1, noise=0.0)
    x, keys = batch()
    x = x.abs()
    with torch.no_grad():
        layer.router.weight[2] = -50
    y, report = layer(x, keys if with_keys else None)
    (y.sum() + report.balance).backward()
    assert report.sums[2] == 0
    for parameter in layer.experts["2"].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    chosen = [e for e in range(EXPERTS) if report.sums[e]]
    assert all(layer.experts[str(e)].fc1.weight.grad.any() for e in chosen)


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_one_expert_is_that_expert(with_keys):
    layer = make(experts=1, top_k=1, capacity_factor=1.0)
    x, keys = batch()
    torch.testing.assert_close(layer(x, keys if with_keys else None)[0], layer.experts["0"](x))


def test_evaluation_of_an_image_does_not_depend_on_its_batch():
    layer = make(capacity_factor=0.25, group_images=16)
    x, _ = batch(images=16)
    whole, _ = layer(x)
    alone = torch.cat([layer(image[None])[0] for image in x])
    mixed = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x[mixed])[0], whole[mixed], rtol=0, atol=1e-5)


def test_training_of_a_routing_group_does_not_depend_on_the_other_groups():
    layer = make(capacity_factor=0.5)
    x, keys = batch()
    whole, _ = layer(x, keys)
    torch.testing.assert_close(layer(x[4:6], keys[4:6])[0], whole[4:6])


@pytest.mark.parametrize("images, group", [(8, 3), (3, 4), (1, 2)])
def test_a_group_that_does_not_divide_the_batch_is_refused_in_training_alone(images, group):
    layer = make(group_images=group)
    x, keys = batch(images)
    with pytest.raises(ValueError, match=f"{images} images .* groups of {group}"):
        layer(x, keys)
    assert layer(x)[0].shape == x.shape


def test_sums_count_choices_drops_and_entropy():
    layer = make(capacity_factor=0.5)
    x, keys = batch()
    _, report = layer(x, keys)
    logits, _, _, ranked = route(layer, x, keys)
    chosen = torch.stack([item for row in ranked for item in row]).flatten()
    p = torch.stack([item for row in logits for item in row]).softmax(dim=1)
    choices = 2 * IMAGES * ITEMS
    slots = math.ceil(0.5 * 2 * 2 * ITEMS / EXPERTS)  # of one expert in one group
    loads = torch.stack([torch.bincount(g, minlength=EXPERTS) for g in chosen.view(IMAGES // 2, -1)])
    dropped = (loads - slots).clamp_min(0).sum()
    entropy = -(p * p.log()).sum()
    expected = [*torch.bincount(chosen, minlength=EXPERTS).tolist(), choices, dropped.item(), entropy.item()]
    assert report.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert dropped > 0
    assert layer(x)[1].sums[-2] == 0


FIGURES = {
    # [choices per expert..., made, dropped, summed entropy], K -> load_cv, dropped, dead, entropy
    "even": ([4, 4, 4, 4, 16, 0, 16 * math.log(4)], 1, (0.0, 0.0, 0, 1.0)),
    "collapsed": ([16, 0, 0, 0, 16, 4, 0.0], 1, (3**0.5, 0.25, 3, 0.0)),
    "two choices": ([8, 8, 12, 4, 32, 8, 8 * math.log(4)], 2, (8**0.5 / 8, 0.25, 0, 0.5)),
    "one expert": ([16, 16, 0, 0.0], 1, (0.0, 0.0, 0, 0.0)),
    "nothing yet": ([0, 0, 0, 0, 0.0], 1, (0.0, 0.0, 2, 0.0)),
}


@pytest.mark.parametrize("sums, top_k, expected", FIGURES.values(), ids=FIGURES.keys())
def test_figures_read_from_sums(sums, top_k, expected):
    figures = stats.read(torch.tensor(sums), top_k)
    assert tuple(figures[key] for key in ("load_cv", "dropped", "dead", "entropy")) == pytest.approx(expected)
