"""Exponential moving averages of weights: MoCo v3's momentum encoder, and the average of a model in fine-tuning.

An average stays outside the DeepSpeed engine and in float32. The engine would cast it to bf16, where the small steps of
an average with momentum 0.99 are rounded away.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(average: nn.Module, online: Mapping[str, Tensor], momentum: float) -> None:
    """Move every parameter of `average` towards the online one: average <- m average + (1 - m) online, in place.

    online: float32 master weights by parameter name. momentum: m; 0 copies the online weights.
    """
    own = dict(average.named_parameters())
    if momentum:
        torch._foreach_lerp_(list(own.values()), [online[name] for name in own], 1 - momentum)
    else:  # also where the average was never initialised, and may hold anything
        torch._foreach_copy_(list(own.values()), [online[name] for name in own])
