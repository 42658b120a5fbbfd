"""Slots under limited capacity: against a twin written as plain loops, and the properties that the docs promise."""

import math
from itertools import product

import pytest
import torch

from sparse_mlp_ds.moe.capacity import place, slots
from sparse_mlp_ds.moe.routes import Choices

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.05, 1.5, 2.0, None)
PRIORITIES = ("position", "importance")


def random_choices(items, experts, k, seed, levels=None):
    """levels: gate logits take so few values that many gate weights are equal."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, experts, generator=generator)
    logits = logits if levels is None else (logits * levels).round() / levels
    # a little of the same for every item decides which of equal experts comes first, and leaves equal items equal
    weight, expert = (logits + torch.linspace(0, 1e-3, experts)).softmax(dim=-1).topk(k, dim=-1)
    return Choices(expert, weight, logits, logits)


def twin(choices, experts, groups, factor, priority):
    """Return [(expert, item, weight)] of the routes that fit, in the order in which they get slots."""
    items, k = choices.expert.shape
    size = items // groups
    capacity = math.inf if factor is None else math.ceil(factor * k * items / (groups * experts))
    placed = []
    for group in range(groups):
        members = list(range(group * size, (group + 1) * size))
        if priority == "importance":
            members.sort(key=lambda item: -choices.weight[item, 0].item())  # equal ones stay in their order
        taken = [0] * experts
        for choice in range(k):
            for item in members:
                expert = choices.expert[item, choice].item()
                if taken[expert] < capacity:
                    taken[expert] += 1
                    placed.append((expert, item, choices.weight[item, choice].item()))
    return placed


def as_list(routes):
    """Return [(expert, item, weight)] in the order of the routes."""
    expert = torch.arange(len(routes.counts)).repeat_interleave(routes.counts)
    return list(zip(expert.tolist(), routes.item.tolist(), routes.weight.tolist(), strict=True))


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("factor", FACTORS)
def test_agrees_with_plain_loops(factor, priority):
    for case, (k, groups, size, experts) in enumerate(product((1, 2), (1, 3, 4), (1, 5, 12), (2, 3, 8))):
        choices = random_choices(groups * size, experts, k, seed=case, levels=2 if case % 2 else None)
        routes = place(choices, experts, groups, factor, priority).kept()
        expected = twin(choices, experts, groups, factor, priority)
        assert sorted(as_list(routes)) == sorted(expected)
        assert routes.counts.shape == (experts,)
        assert routes.counts.sum() == len(expected) == len(routes.item) == len(routes.weight)


@pytest.mark.parametrize("factor", [None, 100.0])
def test_enough_capacity_places_every_choice(factor):
    choices = random_choices(24, 4, 2, seed=0)
    routes = place(choices, 4, 3, factor, "position").kept()
    assert torch.equal(routes.counts, torch.bincount(choices.expert.flatten(), minlength=4))
    assert torch.equal(torch.bincount(routes.item), torch.full((24,), 2))


def test_nobody_exceeds_the_capacity_of_any_group():
    choices = random_choices(40, 4, 2, seed=1)
    for expert, item, _ in as_list(place(choices, 4, 5, None, "position").kept()):
        assert expert in choices.expert[item]
    kept = as_list(place(choices, 4, 5, 0.5, "position").kept())
    load = torch.zeros(4, 5, dtype=torch.int64)
    for expert, item, _ in kept:
        load[expert, item // 8] += 1
    assert load.max() == 2  # ceil(0.5 x 2 x 8 / 4)


ALL_WANT_0 = Choices(
    expert=torch.tensor([[0, 1], [0, 1], [1, 0], [1, 0]]),
    weight=torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2]]),
    logits=torch.zeros(4, 2),
    noisy_logits=torch.zeros(4, 2),
)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_first_choices_come_before_any_second_choice(priority):
    # capacity ceil(0.5 x 2 x 4 / 2) = 2 each: the first choices fill both experts, no second choice gets a slot,
    # not even that of an item whose first choice came earlier or whose gate is larger
    kept = as_list(place(ALL_WANT_0, 2, 1, 0.5, priority).kept())
    assert {(expert, item) for expert, item, _ in kept} == {(0, 0), (0, 1), (1, 2), (1, 3)}


def test_position_serves_in_array_order_and_importance_by_gate():
    # capacity 1: the first choices of items 0 and 1 go to expert 0, those of 2 and 3 to expert 1
    by_position = as_list(place(ALL_WANT_0, 2, 1, 0.25, "position").kept())
    by_gate = as_list(place(ALL_WANT_0, 2, 1, 0.25, "importance").kept())
    assert [(expert, item) for expert, item, _ in by_position] == [(0, 0), (1, 2)]
    assert [(expert, item) for expert, item, _ in by_gate] == [(0, 1), (1, 3)]
    assert [weight for _, _, weight in by_gate] == pytest.approx([0.9, 0.8])


def test_one_choice_by_importance_keeps_each_experts_largest_gates_of_each_group():
    items, experts, groups = 60, 4, 3
    choices = random_choices(items, experts, 1, seed=3)
    kept = {(expert, item) for expert, item, _ in as_list(place(choices, experts, groups, 0.6, "importance").kept())}
    capacity = 3  # 0.6 x 60 / (3 x 4)
    expected = set()
    for group, expert in product(range(groups), range(experts)):
        wanting = [i for i in range(group * 20, group * 20 + 20) if choices.expert[i, 0] == expert]
        best = sorted(wanting, key=lambda i: choices.weight[i, 0].item(), reverse=True)[:capacity]
        expected |= {(expert, item) for item in best}
    assert kept == expected


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_group_is_placed_as_if_it_were_alone(priority):
    choices = random_choices(36, 3, 2, seed=4)
    whole = as_list(place(choices, 3, 3, 0.75, priority).kept())
    for group in range(3):
        part = slice(12 * group, 12 * group + 12)
        own = Choices(choices.expert[part], choices.weight[part], choices.logits[part], choices.noisy_logits[part])
        alone = as_list(place(own, 3, 1, 0.75, priority).kept())
        assert [r for r in whole if r[1] // 12 == group] == [(e, i + 12 * group, w) for e, i, w in alone]


def test_weights_pass_gradients_to_the_choices_kept_alone():
    weight = ALL_WANT_0.weight.clone().requires_grad_()
    routes = place(Choices(ALL_WANT_0.expert, weight, weight, weight), 2, 1, 0.5, "importance").kept()
    routes.weight.sum().backward()
    assert weight.grad.tolist() == [[1, 0], [1, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize("percent", range(5, 305, 5))
def test_slots_are_counted_in_whole_numbers(percent):
    for choices, experts in product((1, 49, 196, 400, 3136, 8000), (2, 3, 8, 32)):
        exact = -(-percent * choices // (100 * experts))
        assert slots(percent / 100, choices, experts) == exact
        assert slots(percent / 100, choices, experts, 4) == -(-exact // 4) * 4


def test_a_whole_share_gets_no_slot_too_many():
    assert 1.1 * 400 / 8 > 55 and slots(1.1, 400, 8) == 55  # which its product in floating point exceeds
    assert slots(1e-9, 8, 2) == 1 and slots(2, 3, 3) == 2


@pytest.mark.parametrize("priority", PRIORITIES)
def test_slots_in_multiples(priority):
    choices = random_choices(40, 4, 2, seed=6)
    narrow, wide = (place(choices, 4, 1, 0.3, priority, None, multiple).kept() for multiple in (1, 4))
    assert set(as_list(narrow)) < set(as_list(wide))
    assert (narrow.counts.max(), wide.counts.max()) == (6, 8)
