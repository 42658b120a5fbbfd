"""LAMB, mixup, CutMix, the calibration error and learning rates against timm, torchmetrics and WideNet's code."""

import pytest
import torch
from torch import nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data import mixup
from sparse_mlp_ds.data.config import Mix
from sparse_mlp_ds.train import evaluate
from sparse_mlp_ds.train.lamb_lars import Lamb
from sparse_mlp_ds.train.schedule import learning_rate
from tests.helpers.references import load, under


def test_lamb():
    recorded = load("timm_lamb")
    parameters = {name: nn.Parameter(value) for name, value in under(recorded, "start").items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 0.1, "vectors": False},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0, "vectors": True},
    ]
    optimizer = Lamb(groups, lr=0.02)
    for step in range(6):
        for name, gradient in under(recorded, f"gradient {step}").items():
            parameters[name].grad = gradient
        optimizer.step()
        for name, expected in under(recorded, f"after {step}").items():
            torch.testing.assert_close(parameters[name].detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_pair(kind, monkeypatch):
    share, middle = 0.7, 5 / 16  # Beta(1, 1) is uniform, so that the draw is the share
    recorded = load("timm_mixup")
    draws = torch.tensor([0.0, 0.0, share, middle, middle])
    monkeypatch.setattr(mixup.rng, "uniform", lambda keys, *_: draws.expand(len(keys), 5))
    targets = torch.nn.functional.one_hot(recorded["labels"], 5) * 0.9 + 0.1 / 5
    section = Mix(**{kind: 1.0})
    images, mixed = mixup.mix(recorded["images"], targets, section, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(images, recorded[f"{kind} {share}/images"])
    torch.testing.assert_close(mixed, recorded[f"{kind} {share}/targets"])


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_shares_of_a_mixed_pair_are_those_of_v_moe(alpha):
    """There the larger share always stays; here either may, but the other image of the pair then keeps the rest."""
    recorded = under(load("vmoe_mixup"), f"mixup {alpha}")
    images = torch.tensor([0.0, 1.0]).repeat(20_000)[:, None, None, None].expand(-1, 3, 1, 1)
    targets = torch.nn.functional.one_hot(torch.tensor([0, 1]).repeat(20_000), 2).float()
    keys = rng.sample_keys(0, torch.arange(40_000), "view 0")
    mixed, labels = mixup.mix(images, targets, Mix(mixup=alpha), keys)
    torch.testing.assert_close(mixed[:, 0, 0, 0], labels[:, 1])
    torch.testing.assert_close(labels[::2] + labels[1::2], torch.ones(20_000, 2))
    found = labels[::2].amax(dim=1).double().quantile(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(found, recorded["quantiles of the kept share"], rtol=0, atol=0.02)


def test_calibration_error():
    recorded = load("torchmetrics_ece")
    counts = evaluate._counts(recorded["logits"], recorded["labels"], 7)
    assert evaluate._outcome(counts, 7).metrics()["ece"] == pytest.approx(recorded["error"].item(), rel=1e-5)


def test_widenet_s_learning_rates():
    """The recipe's schedule at its batch of 4096. The reference warms up from 1e-5, ours from one step after 0."""
    recorded = load("widenet_schedule")
    total, warmup = recorded["total and warm-up"].tolist()
    peak, last = recorded["peak and last"].tolist()
    optimizer = load_recipe("widenet_b_supervised").stages["supervised"].optimizer
    assert (optimizer.peak_lr(4096), optimizer.final_lr) == pytest.approx((peak, last))
    for step, rate in zip(recorded["steps"].tolist(), recorded["rates"].tolist(), strict=True):
        ours = learning_rate(step, total, peak, warmup, optimizer.decay, optimizer.final_lr)
        assert ours == pytest.approx(rate, abs=last if step < warmup else 1e-8)
