"""MoCo v3's objective, momentum encoder, schedules, LARS and ViT against its authors' code (see README.md here)."""

import pytest
import torch
from torch import nn

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.ema import follow
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.positions import sin_cos
from sparse_mlp_ds.ssl.loss import symmetric_info_nce
from sparse_mlp_ds.ssl.networks import MomentumNet
from sparse_mlp_ds.train.lamb_lars import Lars
from sparse_mlp_ds.train.schedule import encoder_momentum, learning_rate
from tests.helpers.references import fill, load, text, under, vit_names

WIDTH, HIDDEN, DIM, MOMENTUM = 12, 24, 8, 0.9
temperatures = pytest.mark.parametrize("temperature", [1.0, 0.2])


class Features(nn.Module):
    """Stands in for a backbone: the recording starts at its features."""

    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.width = width


@temperatures
def test_loss_of_queries_and_keys(temperature):
    case = under(load("moco_v3"), f"T{temperature}")
    queries = case["queries"].requires_grad_()
    loss = symmetric_info_nce(queries, case["keys"], temperature)
    loss.backward()
    torch.testing.assert_close(loss, case["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(queries.grad, case["gradient of queries"], rtol=1e-4, atol=1e-8)


@temperatures
def test_momentum_encoder_follows(temperature):
    case = under(load("moco_v3"), f"T{temperature}")
    average = MomentumNet(Features(), HIDDEN, DIM).projector
    fill(average, under(case, "momentum"))
    follow(average, under(case, "online"), MOMENTUM)
    expected = under(case, "momentum after")
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-7)


def test_schedules():
    recorded = load("moco_v3_schedules")
    total, warmup = recorded["total and warm-up"].tolist()
    peak = 2.4e-3
    for step, rate, momentum in zip(*(recorded[k].tolist() for k in ("steps", "rates", "momenta")), strict=True):
        assert encoder_momentum(step, total, 0.99) == pytest.approx(momentum, rel=1e-12)
        # The reference's first step has a rate of 0. Ours is one step ahead of it while it warms up.
        ahead = peak / warmup if step < warmup else 0.0
        assert learning_rate(step, total, peak, warmup) == pytest.approx(rate + ahead, rel=1e-9)


def test_lars():
    recorded = load("moco_v3_lars")
    parameters = {name: nn.Parameter(value) for name, value in under(recorded, "start").items()}
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": 1e-2, "vectors": False},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0, "vectors": True},
    ]
    optimizer = Lars(groups, lr=0.3)
    for step in range(5):
        for name, gradient in under(recorded, f"gradient {step}").items():
            parameters[name].grad = gradient
        optimizer.step()
        for name, expected in under(recorded, f"after {step}").items():
            torch.testing.assert_close(parameters[name].detach(), expected, rtol=1e-6, atol=1e-7)


def test_vit():
    recorded = load("moco_v3_vit")
    tiny = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "channel_hidden": 64}
    model = registry.build(model_spec({"name": "vit_s16", **tiny}))
    weights = under(recorded, "weights")
    fill(model, vit_names(weights))
    torch.testing.assert_close(model.positions, weights["pos_embed"][0], rtol=0, atol=1e-6)
    with torch.no_grad():
        features, _ = model.forward_features(recorded["images"])
    torch.testing.assert_close(features, recorded["features"], rtol=1e-5, atol=1e-5)


def test_positions():
    torch.testing.assert_close(sin_cos(6, 24), load("moco_v3_vit")["positions"][0, 1:], rtol=0, atol=1e-6)


def test_vit_starts_as_the_reference():
    model = registry.build(registry.preset("vit_s16"))
    init_weights(model, 0)
    assert_starts_alike(vit_names({"base_encoder." + name: p for name, p in model.named_parameters()}))


def assert_starts_alike(parameters):
    """Hold each recorded tensor's distribution against that of the parameter of its name; every one is recorded."""
    summaries = load("moco_v3_vit")["mean, std, min, max"].tolist()
    summaries = dict(zip(text("moco_v3_vit", "names"), summaries, strict=True))
    compared = 0
    for name, (mean, std, low, high) in vit_names(summaries).items():
        if name not in parameters:
            continue
        parameter, compared = parameters[name].detach(), compared + 1
        error = 5 * (std + 1e-12) / parameter.numel() ** 0.5
        assert parameter.mean().item() == pytest.approx(mean, abs=2 * error), name
        assert parameter.std(unbiased=False).item() == pytest.approx(std, abs=2 * error), name
        if "class_token" not in name:  # of normal draws, which have no bounds
            assert parameter.min().item() == pytest.approx(low, rel=0.01, abs=1e-12), name
            assert parameter.max().item() == pytest.approx(high, rel=0.01, abs=1e-12), name
    assert compared == len([name for name in parameters if ".blocks." not in name or ".blocks.0." in name])
