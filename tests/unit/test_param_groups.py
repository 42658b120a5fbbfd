"""Parameter groups against torch's own optimizer."""

import pytest
import torch

from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.train import engine
from sparse_mlp_ds.train.param_groups import layer_decay, parameter_groups
from tests.helpers import tiny


@pytest.mark.parametrize("exempt", [True, False])
def test_without_exemption_adamw_is_torch_s_over_all_parameters(exempt):
    """MoCo v3 gives AdamW all of a model's parameters in one group: vectors decay too."""
    ours, theirs = (registry.build(tiny.spec(), tiny.CLASSES) for _ in range(2))
    section = Optimizer(base_lr=1.0, weight_decay=0.5, exempt_vectors=exempt)
    groups = parameter_groups(ours, section.weight_decay, exempt_vectors=section.exempt_vectors)
    updates = [engine._update_rule(section, groups), torch.optim.AdamW(theirs.parameters(), weight_decay=0.5)]
    for model, update in zip((ours, theirs), updates, strict=True):
        for group in update.param_groups:
            group["lr"] = 0.1
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 2.0)
            parameter.grad = torch.ones_like(parameter)
        update.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other) == (mine.ndim > 1 or not exempt), name


def test_experts_alone_have_a_rate_of_their_own():
    model = registry.build(tiny.spec(), tiny.CLASSES)
    decayed = layer_decay(0.5, len(model.blocks))
    scales = {
        parameter: group["lr_scale"]
        for group in parameter_groups(model, 0.1, decayed, expert_scale=0.25)
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert scales[parameter] == decayed(name) * (0.25 if ".experts." in name else 1), name
    assert any(".experts." in name for name, _ in model.named_parameters())
