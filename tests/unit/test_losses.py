"""Balance losses: against numbers worked out by hand, and where a naive formula has no finite gradient."""

import math

import pytest
import torch

from sparse_mlp_ds.moe.losses import importance_loss, load_loss
from sparse_mlp_ds.moe.routes import Choices

PHI_1 = 0.8413447460685429  # the normal distribution function at 1


def choose(logits, noisy=None, k=1):
    """What a router with these logits would have chosen."""
    noisy = logits if noisy is None else noisy
    weight, expert = noisy.softmax(dim=-1).topk(k, dim=-1)
    return Choices(expert, weight, logits, noisy)


def random_choices(items, experts, k=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, experts, generator=generator)
    return choose(logits, logits + torch.randn(items, experts, generator=generator) / experts, k)


def both(choices, groups):
    return importance_loss(choices, groups), load_loss(choices, groups, 0.25)


IMPORTANCE = {
    # softmax rows (3/4, 1/4) and (1/2, 1/2): Imp = (1.25, 0.75), mean 1, variance 1/16
    "two items": ([[math.log(3), 0.0], [0.0, 0.0]], 1, 1 / 16),
    # the same rows as groups of their own: (1/16 / (1/2)^2 + 0) / 2
    "two groups": ([[math.log(3), 0.0], [0.0, 0.0]], 2, 1 / 8),
    # softmax (1/2, 1/4, 1/4): mean 1/3, variance (1/36 + 2/144) / 3 = 1/72
    "three experts": ([[math.log(2), 0.0, 0.0]], 1, 1 / 8),
    # everything on one of E experts: variance / mean^2 = E - 1
    "collapsed": ([[100.0, 0.0, 0.0, 0.0]] * 3, 1, 3.0),
}


@pytest.mark.parametrize("logits, groups, expected", IMPORTANCE.values(), ids=IMPORTANCE.keys())
def test_importance_loss_by_hand(logits, groups, expected):
    assert importance_loss(choose(torch.tensor(logits)), groups).item() == pytest.approx(expected, rel=1e-5)


def test_importance_ignores_the_noise():
    choices = random_choices(6, 4)
    assert not torch.equal(choices.noisy_logits, choices.logits)
    assert torch.equal(importance_loss(choices, 2), importance_loss(choose(choices.logits), 2))


LOAD = {
    # K = 1: the threshold is the noisy 0.5; (1 - 0.5) / 0.5 = 1 and (0 - 0.5) / 0.5 = -1: P = Phi(1), Phi(-1);
    # mean 1/2, both Phi(1) - 1/2 away from it
    "one choice": ([[1.0, 0.0]], [[0.5, 0.25]], 1, 0.5, (2 * PHI_1 - 1) ** 2),
    # K = 2: the threshold is the second noisy logit, 0: P = Phi(1), 1/2, Phi(-1)
    "two choices": ([[1.0, 0.0, -1.0]], [[1.0, 0.0, -1.0]], 2, 1.0, (2 * PHI_1 - 1) ** 2 * 2 / 3),
    # two items that mirror one another: Load = (Phi(1) + Phi(-1)) of both
    "mirrored": ([[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.25], [0.25, 0.5]], 1, 0.5, 0.0),
    # noise far smaller than the logits: every item stays with expert 0, so E - 1
    "certain": ([[9.0, 0.0, 0.0]] * 2, [[8.9, 0.0, 0.0]] * 2, 1, 0.01, 2.0),
}


@pytest.mark.parametrize("logits, noisy, k, std, expected", LOAD.values(), ids=LOAD.keys())
def test_load_loss_by_hand(logits, noisy, k, std, expected):
    choices = choose(torch.tensor(logits), torch.tensor(noisy), k)
    assert load_loss(choices, 1, std).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_load_is_a_probability_of_redrawing_one_experts_noise():
    """Against the definition, by drawing: expert e stays if its logit with fresh noise reaches the threshold."""
    generator = torch.Generator().manual_seed(0)
    choices, std = random_choices(3, 4, k=2), 0.5
    threshold = choices.noisy_logits.sort(dim=-1, descending=True).values[:, 1]
    fresh = choices.logits + std * torch.randn(200_000, 3, 4, generator=generator)
    load = (fresh >= threshold[:, None]).float().mean(dim=0).sum(dim=0)
    expected = load.var(unbiased=False) / load.mean() ** 2
    assert load_loss(choices, 1, std).item() == pytest.approx(expected.item(), abs=3e-3)


def test_perfect_balance_is_zero_with_a_finite_gradient():
    # every expert is the first, second, third and fourth choice of one item: all sums are equal
    rows = torch.tensor([2.0, 1.0, 0.5, -1.0])
    logits = torch.stack([rows.roll(shift) for shift in range(4)]).requires_grad_()
    for loss in both(choose(logits), 1):
        assert loss.item() == pytest.approx(0, abs=1e-10)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("experts, k", [(1, 1), (4, 1), (4, 2)])
def test_a_router_of_zeros_gives_finite_gradients(experts, k):
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(experts, 3, requires_grad=True)
    logits = torch.randn(8, 3, generator=generator) @ weight.T
    choices = choose(logits, logits + torch.randn(8, experts, generator=generator) / experts, k)
    for loss in both(choices, 2):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all()


def test_all_load_on_one_expert_gives_a_finite_gradient():
    logits = torch.zeros(8, 4)
    logits[:, 2] = 50.0
    logits.requires_grad_()
    for loss in both(choose(logits), 1):
        assert loss.item() == pytest.approx(3, rel=1e-3)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()


def test_descending_the_losses_evens_the_load():
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) + torch.tensor([2.0, 0.0, 0.0, 0.0])
    bias = torch.zeros(4, requires_grad=True)
    before = sum(both(choose(logits + bias), 1))
    (gradient,) = torch.autograd.grad(before, bias)
    after = sum(both(choose(logits + bias - 0.5 * gradient), 1))
    assert after < before
    assert gradient[0] > 0 and (gradient[1:] < 0).all()


def test_the_order_of_a_batch_does_not_matter():
    choices = random_choices(32, 4, k=2)
    mixed = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    permuted = Choices(choices.expert[mixed], choices.weight[mixed], choices.logits[mixed], choices.noisy_logits[mixed])
    torch.testing.assert_close(both(permuted, 1), both(choices, 1))


def test_groups_are_averaged():
    choices = random_choices(24, 4, k=2)
    parts = [
        Choices(*(t[start : start + 6] for t in (choices.expert, choices.weight, choices.logits, choices.noisy_logits)))
        for start in range(0, 24, 6)
    ]
    separate = [torch.stack(losses).mean() for losses in zip(*(both(part, 1) for part in parts), strict=True)]
    torch.testing.assert_close(both(choices, 4), tuple(separate))
