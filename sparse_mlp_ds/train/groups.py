"""Parameter groups: every trainable parameter in exactly one, by weight decay, rate, and kind for ZeRO."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn

from sparse_mlp_ds.moe.router import Router

RateScale = Callable[[str], float]
"""A parameter's name -> its learning rate over the stage's."""


def parameter_groups(
    module: nn.Module, weight_decay: float, rate_scale: RateScale = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Return optimizer groups: vectors (biases, norms) do not decay; experts are apart, as ZeRO needs them.

    Routers have a group of their own too: ZeRO flattens a group into one tensor, and their type may differ. Each group
    has `lr_scale`, its rate over the stage's, and `vectors`, whether it holds vectors.
    """
    routers = {m.weight for m in module.modules() if isinstance(m, Router)}
    members: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            kind = "router" if parameter in routers else "no_decay" if parameter.ndim == 1 else "decay"
            members[kind, rate_scale(name)].append(parameter)
    groups = [
        {
            "name": f"{kind} x {scale:g}",
            "params": parameters,
            "weight_decay": 0.0 if kind == "no_decay" else weight_decay,
            "lr_scale": scale,
            "vectors": kind == "no_decay",
        }
        for (kind, scale), parameters in sorted(members.items(), key=lambda member: member[0])
    ]
    return [group for group in split_params_into_different_moe_groups_for_optimizer(groups) if group["params"]]


def layer_decay(factor: float, depth: int) -> RateScale:
    """Return rates that shrink by `factor` per block from the head down to the patches (BEiT's layer-wise decay).

    depth: blocks of the backbone. The head and the last norm keep the stage's rate, block b gets factor^(depth - b).
    """

    def scale(name: str) -> float:
        path = name.removeprefix("backbone.").split(".")
        if path[0] == "blocks":
            return factor ** (depth - int(path[1]))
        return factor ** (depth + 1) if path[0] in ("patch_embed", "class_token") else 1.0

    return scale
