"""What the papers' relatives do otherwise: expert choice, random priority, Switch and z losses, renormalising."""

import math

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe.capacity import place
from sparse_mlp_ds.moe.expert_choice import choose
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.moe.losses import switch_loss, z_loss
from sparse_mlp_ds.moe.routes import Choices


def choices_of(logits: torch.Tensor, k: int) -> Choices:
    weight, expert = logits.softmax(dim=-1).topk(k, dim=-1)
    return Choices(expert, weight, logits, logits)


def layer_of(experts: int = 3, top_k: int = 2, **routing) -> MoELayer:
    layer = MoELayer(6, experts, top_k, lambda: Mlp(6, 8), Routing(group_images=2, **routing))
    init_weights(layer, seed=0)
    return layer


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0, 9.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_expert_choice_agrees_with_plain_loops(groups, factor):
    items, experts, k = 24, 3, 2
    choices = choices_of(torch.randn(items, experts, generator=torch.Generator().manual_seed(1)), k)
    size = items // groups
    capacity = min(math.ceil(factor * k * size / experts), size)
    expected = set()
    for expert in range(experts):
        for group in range(groups):
            members = range(group * size, (group + 1) * size)
            best = sorted(members, key=lambda i: -choices.probabilities[i, expert].item())[:capacity]
            expected |= {(expert, item) for item in best}
    routes = choose(choices, groups, factor)
    expert = torch.arange(experts).repeat_interleave(routes.counts)
    assert set(zip(expert.tolist(), routes.item.tolist(), strict=True)) == expected
    assert torch.equal(routes.weight, choices.probabilities[routes.item, expert])


def test_expert_choice_of_an_image_does_not_depend_on_its_batch_in_evaluation():
    layer, x = layer_of(priority="expert_choice"), torch.randn(6, 5, 6)
    together = layer(x)[0]
    alone = torch.cat([layer(x[n : n + 1])[0] for n in range(6)])
    torch.testing.assert_close(alone, together)


def test_random_priority_is_drawn_from_the_keys_and_keeps_as_many():
    layer, x = layer_of(priority="random", capacity_factor=0.5), torch.randn(4, 5, 6)
    keys = [rng.sample_keys(seed, torch.arange(4), "test") for seed in (0, 0, 1)]
    first, again, other = (layer(x, k) for k in keys)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_random_priority_fills_in_the_order_of_its_draws():
    choices = choices_of(torch.tensor([[1.0, 0.0]]).expand(4, 2), 1)  # everyone wants expert 0
    routes = place(choices, 2, 1, 1.0, "random", torch.tensor([0.1, 0.9, 0.5, 0.7])).kept()
    assert sorted(routes.item.tolist()) == [1, 3]


def test_switch_loss_by_hand():
    # choices 3 : 1, mean probabilities 0.7 and 0.3 -> 2 (0.75 x 0.7 + 0.25 x 0.3) = 1.2
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    assert switch_loss(choices_of(p.log(), 1), 1).item() == pytest.approx(1.2)
    even = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert switch_loss(choices_of(even, 1), 1).item() == pytest.approx(1.0)


def test_z_loss_by_hand():
    # log(e^0 + e^0) = log 2, log(e^1 + e^1) = 1 + log 2
    logits = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert z_loss(choices_of(logits, 1)).item() == pytest.approx((math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2)


def test_the_layer_adds_the_losses_that_its_routing_names():
    x, keys = torch.randn(4, 5, 6), rng.sample_keys(0, torch.arange(4), "test")
    layer = layer_of(balance="switch", balance_weight=0.5, z_weight=0.25, noise=0.0)
    choices = layer.router(x, keys)
    expected = 0.5 * switch_loss(choices, 2) + 0.25 * z_loss(choices)
    torch.testing.assert_close(layer(x, keys)[1].balance, expected)
    assert layer_of(priority="expert_choice")(x, keys)[1].balance.item() == 0


def test_renormalised_weights_sum_to_one():
    """With experts that all return the same, the output is that return, whatever the gate says."""
    layer, x = layer_of(renormalize=True), torch.randn(2, 5, 6)
    for expert in layer.experts.values():
        expert.load_state_dict(layer.experts["0"].state_dict())
    torch.testing.assert_close(layer(x)[0], layer.experts["0"](x))


def test_one_expert_without_rerepresentation_is_a_mixer():
    """Sparse blocks of one expert each, K = 1, on the dense shapes: numerically the Mixer with the same weights."""
    dense_spec = registry.preset("mixer_digits")
    moe = {"experts": 1, "top_k": 1}
    sparse_spec = model_spec(
        {
            "name": "sparse_mlp_digits",
            "dense_blocks": 2,
            "sparse_blocks": 2,
            "rerepresent": False,
            "moe_s": moe | {"hidden": dense_spec.token_hidden},
            "moe_c": moe | {"hidden": dense_spec.channel_hidden},
        }
    )
    dense, sparse = registry.build(dense_spec, 10), registry.build(sparse_spec, 10)
    init_weights(sparse, seed=0)
    torch.nn.init.normal_(sparse.head.weight)
    names = {
        name.replace("moe_s.experts.0", "mlp_tokens").replace("moe_c.experts.0", "mlp_channels"): value
        for name, value in sparse.state_dict().items()
        if "router" not in name
    }
    dense.load_state_dict(names)
    images = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(sparse(images)[0], dense(images)[0])
    keys = rng.sample_keys(0, torch.arange(8), "test")
    sparse.zero_grad(), dense.zero_grad()
    sparse(images, keys)[0].square().sum().backward()
    dense(images, keys)[0].square().sum().backward()
    torch.testing.assert_close(sparse.patch_embed.proj.weight.grad, dense.patch_embed.proj.weight.grad)


@pytest.mark.parametrize("priority", ["position", "importance", "expert_choice"])
@pytest.mark.parametrize("training", [True, False])
def test_the_multiple_of_slots_holds_in_training_and_in_evaluation(priority, training):
    x, keys = torch.randn(2, 20, 6), rng.sample_keys(0, torch.arange(2), "test") if training else None
    factor = {"capacity_factor": 0.3, "evaluation_capacity": 0.3, "priority": priority}
    images = 2 if training else 1  # of one group
    for multiple in (1, 8):
        layer = layer_of(capacity_multiple=multiple, **factor)
        choices = layer.router(x, keys)
        routes = layer._routes(choices, keys, 2, 1 if training else 2).kept()
        group = routes.item // (20 * images)
        expert = torch.arange(3).repeat_interleave(routes.counts)
        most = torch.zeros(3, 2, dtype=torch.int64).index_put((expert, group), torch.tensor(1), accumulate=True).max()
        assert most == -(-math.ceil(0.3 * 2 * 20 * images / 3) // multiple) * multiple


def test_recipes_pass_the_multiple_on():
    from sparse_mlp_ds.config.recipe import MoE

    assert [MoE(capacity_multiple=4).routing(kind, 0.5).capacity_multiple for kind in ("moe_s", "moe_c")] == [4, 4]


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_gate_scale_multiplies_what_the_experts_add(renormalize):
    x, keys = torch.randn(2, 5, 6), rng.sample_keys(0, torch.arange(2), "test")
    plain, scaled = layer_of(renormalize=renormalize), layer_of(renormalize=renormalize, gate_scale=4.0)
    scaled.load_state_dict(plain.state_dict())
    for given in (None, keys):
        torch.testing.assert_close(scaled(x, given)[0], 4 * plain(x, given)[0])
    plain.runs_all = scaled.runs_all = True  # as an export's graph computes it
    torch.testing.assert_close(scaled(x)[0], 4 * plain(x)[0])


def test_settings_of_one_mixture_are_its_own():
    both = MoE(noise=0.5, renormalize=True)
    for kind in ("moe_s", "moe_c"):
        routing = both.routing(kind)
        assert (routing.noise, routing.renormalize, routing.gate_scale) == (0.5, True, 1.0)
    own = MoE(noise=0.5, noise_s=0, renormalize_c=True, gate_scale_s=2.0, gate_scale_c=3.0)
    of_patches, of_channels = own.routing("moe_s"), own.routing("moe_c")
    assert (of_patches.noise, of_patches.renormalize, of_patches.gate_scale) == (0, False, 2.0)
    assert (of_channels.noise, of_channels.renormalize, of_channels.gate_scale) == (0.5, True, 3.0)
