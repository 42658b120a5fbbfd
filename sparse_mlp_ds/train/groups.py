"""Parameter groups: every trainable parameter in exactly one, split by weight decay and by kind for ZeRO."""

from typing import Any

from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups: vectors (biases, norms) do not decay; experts are apart, as ZeRO needs them."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"name": "decay", "params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"name": "no_decay", "params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
    ]
    return [group for group in split_params_into_different_moe_groups_for_optimizer(groups) if group["params"]]
