"""The MoE layer against a twin in plain loops over groups, items and experts: outputs, losses and every gradient."""

import math

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe.layer import MoELayer, Routing

IMAGES, ITEMS, DIM, EXPERTS = 8, 3, 6, 4
PRIORITIES = ("position", "importance", "random", "expert_choice")


def make(top_k=2, dropout=0.0, **routing):
    routing = Routing(**{"group_images": 2, "balance_weight": 0.3} | routing)
    layer = MoELayer(DIM, EXPERTS, top_k, lambda: Mlp(DIM, 10, dropout), routing, keyed_experts=dropout > 0)
    init_weights(layer, seed=0)
    with torch.no_grad():
        layer.router.weight *= 3  # clear preferences
        for number, expert in enumerate(layer.experts.values()):
            expert.fc2.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(number))
            expert.dropout1.stream.fill_(100 + number)
            expert.dropout2.stream.fill_(200 + number)
    return layer


def twin(layer, x, keys):
    """The layer's output and balance loss, one item at a time (Sparse-MLP 2.1 and 2.2, V-MoE 3.3 and A.2)."""
    routing, k = layer.routing, layer.router.top_k
    expert_choice, noise_std = routing.priority == "expert_choice", routing.noise / EXPERTS
    size = routing.group_images if keys is not None else 1 if expert_choice else len(x)
    noise = torch.zeros(len(x), ITEMS, EXPERTS)
    if keys is not None:
        noise += rng.normal(keys, layer.router.stream, ITEMS * EXPERTS).view_as(noise) * noise_std
        draws = rng.uniform(keys, layer.router.stream + 1, ITEMS)
    y, terms = {(b, t): torch.zeros(DIM) for b in range(len(x)) for t in range(ITEMS)}, []
    for first in range(0, len(x), size):
        group = [(b, t) for b in range(first, first + size) for t in range(ITEMS)]
        logits = {i: layer.router.weight @ x[i] for i in group}
        noisy = {i: logits[i] + noise[i] for i in group}
        gate = {i: noisy[i].softmax(dim=0) for i in group}
        chosen = {i: gate[i].argsort(descending=True)[:k].tolist() for i in group}
        share = (routing.capacity_factor or 1) * k * len(group) / EXPERTS
        slots = math.inf if routing.capacity_factor is None or keys is None else math.ceil(share)
        if expert_choice:
            taken = [sorted(group, key=lambda i: -gate[i][e])[: math.ceil(share)] for e in range(EXPERTS)]
        else:
            queue = group
            if routing.priority != "position" and slots < math.inf:
                score = draws if routing.priority == "random" else {i: g.max() for i, g in gate.items()}
                queue = sorted(group, key=score.__getitem__, reverse=True)
            taken = [[] for _ in range(EXPERTS)]
            for choice in range(k):
                for i in queue:
                    if len(taken[chosen[i][choice]]) < slots:
                        taken[chosen[i][choice]].append(i)
        for e, items in enumerate(taken):
            for i in items:
                key = None if keys is None else rng.fold(keys[i[0] : i[0] + 1], i[1])
                weight = gate[i][e] / (sum(gate[i][c] for c in chosen[i]) if routing.renormalize else 1)
                y[i] = y[i] + weight * layer.experts[str(e)](x[i][None], key)[0]
        importance = sum(logits[i].softmax(dim=0) for i in group)
        threshold = {i: noisy[i].sort(descending=True).values[k - 1] for i in group}
        stays = lambda i: torch.special.ndtr((logits[i] - threshold[i]) / noise_std)  # noqa: E731, B023
        load = sum(stays(i) for i in group)
        terms += [v.var(unbiased=False) / v.mean() ** 2 for v in (importance, load)]
    balance = torch.zeros(()) if keys is None or expert_choice else sum(terms) / (len(terms) / 2)
    return torch.stack(list(y.values())).view_as(x), routing.balance_weight * balance / 2


def compare(layer, x, keys):
    x = x.requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    y, report = layer(x, keys)
    twin_y, twin_balance = twin(layer, x, keys)
    torch.testing.assert_close(y, twin_y)
    torch.testing.assert_close(report.balance, twin_balance)
    inputs = [x, *layer.parameters()]
    got, expected = (
        torch.autograd.grad((out * direction).sum() + loss, inputs, allow_unused=True, materialize_grads=True)
        for out, loss in ((y, report.balance), (twin_y, twin_balance))
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    return y


def batch():
    return torch.randn(IMAGES, ITEMS, DIM, generator=torch.Generator().manual_seed(0)), rng.sample_keys(
        5, torch.arange(IMAGES), "test"
    )


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize("factor", [None, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("priority", PRIORITIES)
def test_agrees_with_plain_loops(priority, top_k, factor, with_keys):
    x, keys = batch()
    compare(make(top_k, priority=priority, capacity_factor=factor), x, keys if with_keys else None)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_renormalised_and_with_dropout_inside_the_experts(priority):
    x, keys = batch()
    plain, dropped = (
        compare(make(2, dropout, priority=priority, capacity_factor=0.75, renormalize=True), x, keys)
        for dropout in (0.0, 0.4)
    )
    assert not torch.allclose(plain, dropped)


def test_the_rules_differ():
    """Without this, the twin might agree because no rule mattered."""
    x, keys = batch()
    outputs = [make(priority=priority, capacity_factor=0.5)(x, keys)[0] for priority in PRIORITIES]
    outputs += [make(capacity_factor=None)(x, keys)[0], make(capacity_factor=None, noise=0.0)(x, keys)[0]]
    assert not any(torch.allclose(a, b) for n, a in enumerate(outputs) for b in outputs[:n])
