"""All experts of a layer at once, on a GPU: without waiting for the device, and in as few launches as one expert takes.

The loop over experts must know each one's number of rows, for which the host waits. Here that number stays on the
device: rows lie behind one another by expert, and one grouped product multiplies each with its expert's weights. Rows
behind the last expert's hold nothing: products leave them uninitialised, in the backward pass too. `first` stands
before and behind the products, so that nothing of them gets anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def applies(rows: Tensor, experts: Sequence[nn.Module]) -> bool:
    """Return whether the experts run in grouped products: in bf16 on GPUs from Hopper on, with an expert that can.

    rows: what they would run on, or anything of its type and device.

    Not on CPUs, where the loop is faster. Measured on an H200 (docs/gpu.md), grouped products are as fast as the loop's
    with few experts and many rows, and several times faster with many experts, as soon as no gradient of a bias is
    added up by atomics.
    """
    if not (rows.dtype == torch.bfloat16 and len(rows) > 0 and on_hopper(rows.device) and able(experts)):
        return False
    return all(parameter.dtype == rows.dtype for parameter in experts[0].parameters())  # not so under autocast


def on_hopper(device: torch.device) -> bool:
    """Return whether a device is an NVIDIA GPU of the Hopper generation or a later one."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def able(experts: Sequence[nn.Module]) -> bool:
    """Return whether experts have a static method `together` and parameters whose rows are whole units of 16 bytes."""
    if not experts or not hasattr(type(experts[0]), "together"):
        return False
    return all(side % 8 == 0 for parameter in experts[0].parameters() for side in parameter.shape)


def to_experts(items: Tensor, item: Tensor, by_item: Tensor) -> Tensor:
    """Gather rows for the experts: [N, D] -> [R, D].

    Args:
        items: [N, D].
        item: [R] the item of each row; R = N K, and every item is there K times.
        by_item: [N, K] the rows of each item, the inverse of `item`.
    """
    return _ToExperts.apply(items, item, by_item)


def from_experts(rows: Tensor, item: Tensor, by_item: Tensor) -> Tensor:
    """Add up the rows of each item: [R, D] -> [N, D]. Arguments as in `to_experts`."""
    return _FromExperts.apply(rows, item, by_item)


@dataclass(frozen=True)
class Segments:
    """Where each of E experts has its rows among R rows sorted by expert; rows behind the last one's are nobody's."""

    ends: Tensor
    """[E] int32: the end of each expert's rows."""
    expert: Tensor
    """[R] int64: the expert of each row; the last expert for rows that are nobody's."""
    used: Tensor
    """[R, 1] bool: whether a row is somebody's."""
    empty: Tensor
    """[E, 1] bool: whether an expert has no rows."""

    def repeated(self, times: int) -> "Segments":
        """Return the segments of rows of which each stands there `times` times, one behind another."""
        expert, used = (part.repeat_interleave(times, dim=0) for part in (self.expert, self.used))
        return Segments(self.ends * times, expert, used, self.empty)


def segments(counts: Tensor, rows: int) -> Segments:
    """Return the segments of `rows` rows, of which each expert has `counts` [E]; all of it stays on the device."""
    ends = counts.cumsum(0).to(torch.int32)
    expert = torch.searchsorted(ends, torch.arange(rows, device=ends.device, dtype=ends.dtype), right=True)
    last = len(counts) - 1
    return Segments(ends, expert.clamp_max(last), (expert <= last)[:, None], (counts == 0)[:, None])


def first(rows: Tensor, segments: Segments) -> Tensor:
    """Return rows [R, D] with zeros in place of those that are nobody's; their gradients are zeros, too."""
    return torch.where(segments.used, rows, 0.0)


def linear(rows: Tensor, layers: Sequence[nn.Linear], segments: Segments) -> Tensor:
    """Apply each expert's layer to its rows: [R, D] -> [R, D'].

    Args:
        rows: [R, D] sorted by expert.
        layers: one linear layer with bias for each of the E experts.
        segments: the rows of each expert. What is nobody's is neither read nor written.
    """
    weight, bias = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    return _Linear.apply(rows, weight, bias, segments.ends, segments.expert, segments.empty)


class _ToExperts(torch.autograd.Function):
    """A gather whose gradient is a gather, too: adding up by index would take atomics, in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, item: Tensor, by_item: Tensor) -> Tensor:
        ctx.save_for_backward(by_item)
        return x.index_select(0, item)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _add_up(gradient, *ctx.saved_tensors), None, None


class _FromExperts(torch.autograd.Function):
    """The transpose of `_ToExperts`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, item: Tensor, by_item: Tensor) -> Tensor:
        ctx.save_for_backward(item)
        return _add_up(rows, by_item)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (item,) = ctx.saved_tensors
        return gradient.index_select(0, item), None, None


def _add_up(rows: Tensor, by_item: Tensor) -> Tensor:
    parts = rows.index_select(0, by_item.flatten())
    return parts if by_item.shape[1] == 1 else parts.unflatten(0, by_item.shape).sum(dim=1)


class _Linear(torch.autograd.Function):
    """Each expert's W x + b; the gradient of b is a product with ones, summed in float32.

    Experts without rows get gradients of 0: whether a product over no rows writes zeros is left to the kernel.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, expert: Tensor, empty: Tensor
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, ends, empty)
        times = _times_in_graph if torch.compiler.is_compiling() else _times
        return times(rows, weight.transpose(1, 2), ends).add_(bias.index_select(0, expert))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        rows, weight, ends, empty = ctx.saved_tensors
        ones = gradient.new_ones(len(gradient), 8)  # one column would do, but rows are whole units of 16 bytes
        compiling = torch.compiler.is_compiling()
        times, outer = (_times_in_graph, _outer_in_graph) if compiling else (_times, _outer)
        of_rows = times(gradient, weight, ends)
        of_weight = outer(gradient, rows, ends).masked_fill_(empty[:, None], 0)
        of_bias = outer(ones, gradient, ends)[:, 0].masked_fill(empty, 0)
        return of_rows, of_weight, of_bias, None, None, None


def _times(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each expert's rows with its matrix: [R, D] and [E, D, D'] -> [R, D']."""
    return nn.functional.grouped_mm(rows.contiguous(), weight, offs=ends)


def _outer(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Multiply a's transpose with b over each expert's rows: [R, D'] and [R, D] -> [E, D', D]."""
    return nn.functional.grouped_mm(a.contiguous().t(), b.contiguous(), offs=ends)


# What is called inside a compiled block, where torch would choose how rows lie in memory: if columns lay one behind the
# other, experts' parts of them would have to begin at whole units of 16 bytes (seen on an H200 with torch 2.11).
_times_in_graph = torch.library.custom_op("sparse_mlp_ds::grouped_times", _times, mutates_args=())
_outer_in_graph = torch.library.custom_op("sparse_mlp_ds::grouped_outer", _outer, mutates_args=())


@_times_in_graph.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[2])


@_outer_in_graph.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    return a.new_empty(len(ends), a.shape[1], b.shape[1])
