"""Parameter groups: every trainable parameter in exactly one, split by weight decay and by kind for ZeRO."""

from typing import Any

from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn

from sparse_mlp_ds.moe.router import Router


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups: vectors (biases, norms) do not decay; experts are apart, as ZeRO needs them.

    Routers have a group of their own too: ZeRO flattens a group into one tensor, and their type may differ.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    routers = {m.weight for m in module.modules() if isinstance(m, Router)}
    groups = [
        {"name": "decay", "params": [p for p in trainable if p.ndim > 1 and p not in routers]},
        {"name": "router", "params": [p for p in trainable if p in routers]},
        {"name": "no_decay", "params": [p for p in trainable if p.ndim == 1]},
    ]
    for group in groups:
        group["weight_decay"] = 0.0 if group["name"] == "no_decay" else weight_decay
    return [group for group in split_params_into_different_moe_groups_for_optimizer(groups) if group["params"]]
