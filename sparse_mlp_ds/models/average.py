"""Exponential moving averages of weights: MoCo's momentum net, and the weights that a fine-tuned model is tested with.

An average stays outside the DeepSpeed engine and in float32: the engine would cast it to bf16, in which an average of
momentum 0.99 does not move.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(average: nn.Module, online: Mapping[str, Tensor], momentum: float) -> None:
    """theta_a <- m theta_a + (1 - m) theta for every parameter of `average`; online: float32 masters by name."""
    for name, parameter in average.named_parameters():
        parameter.lerp_(online[name], 1 - momentum)
