"""Distillation against DeiT's code: the loss and its gradients for both heads."""

import pytest
import torch

from sparse_mlp_ds.config.stages import Distill
from sparse_mlp_ds.train.distillation import distillation_loss
from tests.helpers.references import load


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.5, 1.0), (0.1, 3.0)])
def test_distillation(kind, alpha, temperature):
    recorded, case = load("deit_distillation"), f"{kind} alpha {alpha} tau {temperature}"
    heads = [recorded[name].clone().requires_grad_() for name in ("logits", "distilled logits")]
    distill = Distill(teacher="teacher", type=kind, alpha=alpha, temperature=temperature)
    labels_part = torch.nn.functional.cross_entropy(heads[0], recorded["labels"])
    loss = distillation_loss(labels_part, heads[1], recorded["teacher logits"], distill)
    torch.testing.assert_close(loss.detach(), recorded[f"{case}/loss"], rtol=1e-6, atol=0)
    gradients = torch.stack(torch.autograd.grad(loss, heads))
    torch.testing.assert_close(gradients, recorded[f"{case}/gradients"], rtol=1e-5, atol=1e-8)
