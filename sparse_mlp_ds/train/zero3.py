"""What DeepSpeed's ZeRO-3 keeps where: each rank an equal part of every parameter, in flat pieces by optimizer group.

The parts of a parameter are consecutive runs of its elements. They are rounded up, so that the last ranks' parts may
end in padding, or consist of nothing else. tests/ranks hold this file against a new release of DeepSpeed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor, nn

from sparse_mlp_ds.train.lamb_lars import Layout


@dataclass(frozen=True)
class Fragment:
    """A run of a parameter's elements whose update is this rank's, with their state; all tensors are flat views."""

    start: int
    """Position of the first element in the whole parameter, in row-major order."""
    master: Tensor
    """The float32 values [n]; those of a parameter that is not trained have its own type."""
    moments: dict[str, Tensor]
    """The optimizer's state of the same elements [n], by the names that the optimizer gives to it."""


@dataclass(frozen=True)
class Part:
    """Where this rank's part of one parameter lies in the flat piece of its group."""

    parameter: nn.Parameter
    offset: int
    """Its first element in the flat piece."""
    start: int
    """Position of that element in the whole parameter."""
    count: int
    """Elements without padding; may be 0."""
    padded: int
    """Elements with padding."""


def prepare(zero: Any) -> None:
    """Fill the padding, which DeepSpeed leaves as it finds it, with zeros: LAMB and LARS take norms of whole pieces.

    zero: DeepSpeed's optimizer for ZeRO-3, here and below.
    """
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        for part in _parts(zero, number):
            flat.detach()[part.offset + part.count : part.offset + part.padded].zero_()


def fragments(zero: Any) -> dict[Tensor, Fragment]:
    """Return this rank's fragment of each parameter of which it has one, by parameter."""
    found: dict[Tensor, Fragment] = {}
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        state = {
            name: values
            for name, values in zero.optimizer.state.get(flat, {}).items()
            if torch.is_tensor(values) and values.shape == flat.shape
        }
        for part in _parts(zero, number):
            if part.count:
                own = slice(part.offset, part.offset + part.count)
                moments = {name: values[own] for name, values in state.items()}
                found[part.parameter] = Fragment(part.start, flat.detach()[own], moments)
    for parameter in _frozen(zero):
        start, count, _ = _run(parameter)
        if count:
            found[parameter] = Fragment(start, parameter.ds_tensor[:count], {})  # type: ignore[attr-defined]
    return found


def full_masters(zero: Any, device: torch.device) -> dict[Tensor, Tensor]:
    """Return the float32 values of all parameters in their shapes, by one all-gather for each group. Collective."""
    full: dict[Tensor, Tensor] = {}
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        rows = _gather(flat.detach().to(device))
        for part in _parts(zero, number):
            full[part.parameter] = _whole(part.parameter, rows[:, part.offset : part.offset + part.padded])
    for parameter in _frozen(zero):
        full[parameter] = _whole(parameter, _gather(parameter.ds_tensor.to(device)))  # type: ignore[attr-defined]
    return full


def layouts(zero: Any) -> dict[Tensor, Layout]:
    """Return, for each flat piece on this rank, which elements belong to which tensor of the group."""
    return {
        flat: Layout(
            tuple((place, part.offset, part.padded) for place, part in enumerate(_parts(zero, number))),
            len(zero.fp16_groups[number]),
            torch_dist.all_reduce,
        )
        for number, flat in enumerate(zero.fp32_partitioned_groups_flat)
    }


@contextmanager
def whole_optimizer(zero: Any) -> Iterator[None]:
    """Let the optimizer see all flat pieces at once; DeepSpeed shows it one at a time, and none between steps."""
    groups = zero.optimizer.param_groups
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        groups[zero.sub_group_to_group_id[number]]["params"].append(flat)
    try:
        yield
    finally:
        for group in groups:
            group["params"] = []


def publish(zero: Any) -> None:
    """Let forward passes see masters that were changed: copy them, and let go of what was collected before."""
    for number in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(number)
    zero._partition_all_parameters()


def forget() -> None:
    """Let go of networks whose engines are gone, with their optimizers: DeepSpeed adds each one to a list for ever."""
    parameter_offload.FWD_MODULE_STACK.clear()


def shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a whole parameter, which may be partitioned at present, under any stage of ZeRO."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _parts(zero: Any, number: int) -> Iterator[Part]:
    """Yield the parts of a group's parameters in the order in which they lie in its flat piece. number: the group's."""
    offset = 0
    for parameter in zero.fp16_groups[number]:
        start, count, padded = _run(parameter)
        yield Part(parameter, offset, start, count, padded)
        offset += padded


def _run(parameter: Any) -> tuple[int, int, int]:
    """Return the first element of this rank's part, and its elements without and with padding."""
    padded = parameter.partition_numel()
    start = padded * torch_dist.get_rank()
    return start, min(max(parameter.ds_numel - start, 0), padded), padded


def _frozen(zero: Any) -> list[nn.Parameter]:
    return [parameter for parameter in zero.module.parameters() if not parameter.requires_grad]


def _gather(own: Tensor) -> Tensor:
    """Return the pieces of all ranks, [ranks, n], of this rank's [n]."""
    pieces = own.new_empty(torch_dist.get_world_size(), len(own))
    torch_dist.all_gather_into_tensor(pieces.view(-1), own)
    return pieces


def _whole(parameter: Any, parts: Tensor) -> Tensor:
    """Return a parameter put together from the parts of all ranks [ranks, padded], in float32."""
    return parts.reshape(-1)[: parameter.ds_numel].view(parameter.ds_shape).float()
