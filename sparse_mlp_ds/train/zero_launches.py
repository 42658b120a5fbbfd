"""ZeRO-1 and 2 in fewer launches and with one wait for the device per step; every value stays what DeepSpeed computes.

DeepSpeed moves the gradient of each parameter by a copy of its own, and asks the device for every parameter group
whether the norm is a number. A sparse model has hundreds of small tensors, and its steps then take longer to issue than
to compute. None of this applies where the optimizer is offloaded.
"""

import contextlib
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor


def copy_together(zero: Any) -> None:
    """Move the reduced gradients of a bucket to the buffer of this rank's share by one operation.

    zero: DeepSpeed's optimizer for ZeRO-1 and 2.
    """
    reduce, copy_one = zero.reduce_ipg_grads, zero.copy_grads_in_partition

    def reduce_and_copy(*args: Any, **kwargs: Any) -> None:
        reduced: list[tuple[Tensor, int | None]] = []
        zero.copy_grads_in_partition = lambda parameter, group=None: reduced.append((parameter, group))
        try:
            reduce(*args, **kwargs)
        finally:
            zero.copy_grads_in_partition = copy_one
        # Where ZeRO overlaps communication, this is the stream that reduces, and the bucket is written in it again.
        overlapping = get_accelerator().stream(zero.reduction_stream) if zero.overlap_comm else contextlib.nullcontext()
        with overlapping:
            _copy(zero, reduced, copy_one)

    zero.reduce_ipg_grads = reduce_and_copy


def _copy(zero: Any, reduced: list[tuple[Tensor, int | None]], copy_one: Any) -> None:
    """Do what DeepSpeed's `copy_grads_in_partition` (here `copy_one`) does for several parameters."""
    compact = zero._use_compact_grad_partition_buffer
    while reduced and (zero.grads_in_partition is None or any(compact(group) for _, group in reduced)):
        copy_one(*reduced.pop(0))  # the first one of a step makes the buffer
    gradients = [zero.get_gradient_for_reduction(parameter) for parameter, _ in reduced]
    if not gradients:
        return
    sizes = [gradient.numel() for gradient in gradients]
    offset = zero.grads_in_partition_offset
    copies = zero.grads_in_partition.view(-1).narrow(0, offset, sum(sizes)).split(sizes)
    torch._foreach_copy_(list(copies), [gradient.view(-1) for gradient in gradients])
    for gradient, copy in zip(gradients, copies, strict=True):
        gradient.data = copy.view_as(gradient)
    zero.grads_in_partition_offset = offset + sum(sizes)


def clip_together(zero: Any) -> None:
    """Compute the factor by which gradients are unscaled and clipped once a step, not once for each group.

    DeepSpeed has looked at the norm before, and skips the step if it is not a number, so it is not asked for again.
    zero: DeepSpeed's optimizer for ZeRO-1 and 2.
    """
    known: list[Tensor] = [torch.empty(0), torch.empty(0)]  # a norm, and the factor that follows from it

    def unscale_and_clip(gradients: list[Any], norm: Tensor) -> None:
        if zero.clip_grad == 0.0 and zero.loss_scale == 1.0:
            return
        if known[0] is not norm:
            scale = zero.loss_scale
            if zero.clip_grad > 0.0:
                scale = torch.clamp(((norm / scale) + 1e-6) / zero.clip_grad, min=1.0) * scale
            known[:] = norm, 1.0 / scale
        for gradient in gradients:
            gradient.data.mul_(known[1])

    zero.unscale_and_clip_grads = unscale_and_clip
