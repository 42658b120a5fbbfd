"""What a supervised stage minimises, against sums written out class by class; where its head and its update start."""

import math

import pytest
import torch

from sparse_mlp_ds.config.stages import Optimizer, Supervised
from sparse_mlp_ds.train.engine import _update_rule
from sparse_mlp_ds.train.supervised import classification_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.3, 0.7, 0.0]])  # the second is mixed


def stage(**keys):
    whole = {"kind": "supervised", "epochs": 1, "batch_size": 8, "view": {}, "optimizer": {"base_lr": 1.0}}
    return Supervised.model_validate(whole | keys)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_sigmoid_is_the_sum_over_classes_and_the_mean_over_images():
    by_image = [
        -sum(t * log_sigmoid(x) + (1 - t) * log_sigmoid(-x) for x, t in zip(logits, targets, strict=True))
        for logits, targets in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)
    ]
    loss = classification_loss(LOGITS, TARGETS, stage(loss="sigmoid", label_smoothing=0))
    assert loss.item() == pytest.approx(sum(by_image) / 2, rel=1e-6)


def test_softmax_smooths_labels():
    smooth = 0.9 * TARGETS + 0.1 / 3
    wanted = -(smooth * LOGITS.log_softmax(dim=1)).sum(dim=1).mean().item()
    assert classification_loss(LOGITS, TARGETS, stage()).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("eps, share", [(None, 1.0), (1.0, 0.75)])
def test_eps_damps_the_first_step(name, eps, share):
    """It is g / (|g| + eps) for either rule, on a vector, which LAMB does not scale."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.full((1,), 3.0)
    groups = [{"params": [parameter], "weight_decay": 0.0, "vectors": True}]
    rule = _update_rule(Optimizer(name=name, base_lr=1.0, eps=eps), groups)
    rule.param_groups[0]["lr"] = 1.0
    rule.step()
    assert parameter.item() == pytest.approx(-share, rel=1e-5)
