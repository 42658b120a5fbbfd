"""Parameter groups by weight decay, learning rate and kind; every trainable parameter is in exactly one."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import nn

from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.moe.router import Router

RateScale = Callable[[str], float]
"""A function from a parameter's name to its learning rate, as a multiple of the stage's rate."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    rate_scale: RateScale = lambda name: 1.0,
    exempt_vectors: bool = True,
    expert_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: vectors (biases, norms) and experts have their own groups.

    Learned positions are a stack of vectors, one for each patch (as in DeiT's code).

    ZeRO needs experts apart. Routers have their own group too: ZeRO flattens a group into one tensor, and the type of
    routers may differ. Each group has `lr_scale`, its rate as a multiple of the stage's rate (for experts, times
    `expert_scale`), and `vectors`, which says whether it holds vectors that neither decay nor are rescaled
    (exempt_vectors).
    """
    layers = [m for m in module.modules() if isinstance(m, MoELayer)]
    experts = {parameter for layer in layers for parameter in layer.experts.parameters()}
    routers = {m.weight for m in module.modules() if isinstance(m, Router)}
    members: dict[tuple[str, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim == 1 or name.split(".")[-1] == "positions"
            kind = "router" if parameter in routers else "no_decay" if vector else "decay"
            scale = rate_scale(name) * (expert_scale if parameter in experts else 1.0)
            members[kind, scale].append(parameter)
    groups = [
        {
            "name": f"{kind} x {scale:g}",
            "params": parameters,
            "weight_decay": 0.0 if kind == "no_decay" and exempt_vectors else weight_decay,
            "lr_scale": scale,
            "vectors": kind == "no_decay" and exempt_vectors,
        }
        for (kind, scale), parameters in sorted(members.items(), key=lambda member: member[0])
    ]
    return [group for group in split_params_into_different_moe_groups_for_optimizer(groups) if group["params"]]


def layer_decay(factor: float, depth: int) -> RateScale:
    """Return the rates of layer-wise decay as in BEiT: they shrink by `factor` per block from the head to the patches.

    The head and the last norm keep the stage's rate, block b gets factor^(depth - b). depth: blocks of the backbone.
    """

    def scale(name: str) -> float:
        path = name.removeprefix("backbone.").split(".")
        if path[0] == "blocks":
            return factor ** (depth - int(path[1]))
        return (
            factor ** (depth + 1)
            if path[0] in ("patch_embed", "token_embed", "class_token", "distillation_token", "positions")
            else 1.0
        )

    return scale
