"""Algorithm 1 of MoCo v3 as a whole, against its authors' code: heads, batch norm per view, loss and gradients."""

import pytest
import torch

from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.ssl.loss import symmetric_info_nce
from sparse_mlp_ds.ssl.networks import MomentumNet, OnlineNet
from tests.helpers.references import fill, load, under
from tests.references.test_moco_v3 import DIM, HIDDEN, Features, assert_starts_alike, temperatures


@temperatures
def test_one_step(temperature):
    case = under(load("moco_v3"), f"T{temperature}")
    online, momentum = OnlineNet(Features(), HIDDEN, DIM), MomentumNet(Features(), HIDDEN, DIM)
    fill(online.projector, under(case, "online"))
    fill(online.predictor, under(case, "predictor"))
    fill(momentum.projector, under(case, "momentum after"))
    features = case["features"].requires_grad_()  # [2, B, C]

    queries, keys = online.queries(features), momentum.keys(features.detach())
    loss = symmetric_info_nce(queries, keys, temperature)
    loss.backward()

    _assert_close_as_a_whole(queries, case["queries"])
    _assert_close_as_a_whole(keys, case["keys"])
    torch.testing.assert_close(loss, case["loss"], rtol=1e-5, atol=0)
    _assert_close_as_a_whole(features.grad, case["gradient of features"])
    for name, module in (("online", online.projector), ("predictor", online.predictor)):
        expected = under(case, f"gradient of {name}")
        assert {n for n, _ in module.named_parameters()} == set(expected)
        for key, parameter in module.named_parameters():
            _assert_close_as_a_whole(parameter.grad, expected[key])


def _assert_close_as_a_whole(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm().item() == pytest.approx(0.0, abs=1e-4 * expected.norm().item())


def test_heads_start_as_the_reference():
    online = OnlineNet(Features(384), 4096, 256)
    init_weights(online, 0)
    head = {f"base_encoder.head.{name}": p for name, p in online.projector.named_parameters()}
    assert_starts_alike(head | {f"predictor.{name}": p for name, p in online.predictor.named_parameters()})
