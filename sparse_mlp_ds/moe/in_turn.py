"""The MLP experts of a layer, one after another on their own rows, as one operation for autograd.

Without it, every expert is four nodes of the graph, and joining the experts' results and splitting their gradients
copies all rows once more in each direction. Here each product reads and writes its part of one buffer. The sums are the
same ones, so results and gradients are equal bit for bit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PARAMETERS = 4
"""Parameters of an expert: weight and bias of its first linear layer, then of its second."""


def mlps(
    rows: Tensor,
    sizes: Sequence[int] | Tensor,
    layers: Sequence[tuple[nn.Linear, nn.Linear]],
    factor: Tensor | None = None,
) -> Tensor:
    """Apply W2 (f gelu(W1 x + b1)) + b2 to the rows of each expert: [R, D] -> [R, D'].

    Args:
        rows: [R, D] sorted by expert.
        sizes: number of rows of each expert; experts without rows get gradients of 0. As a tensor [E] int64, for a
            compiled graph without gradients, whose host does not know the numbers; rows behind the last one's become 0.
        layers: both linear layers, with biases, of each expert.
        factor: [R, H] f of each row's hidden units, which dropout draws; None is 1. For sizes that the host knows.
    """
    parameters = [parameter for pair in layers for layer in pair for parameter in (layer.weight, layer.bias)]
    device = rows.device.type
    if not rows.is_meta and torch.is_autocast_enabled(device):  # which does not reach products that write to a buffer
        dtype = torch.get_autocast_dtype(device)
        rows, parameters = rows.to(dtype), [parameter.to(dtype) for parameter in parameters]
    if isinstance(sizes, Tensor):
        assert factor is None
        return _in_graph(rows, sizes, parameters)
    return _Mlps.apply(rows, tuple(sizes), None if factor is None else factor.to(rows.dtype), *parameters)


def _as_one_operation(rows: Tensor, counts: Tensor, parameters: list[Tensor]) -> Tensor:
    sizes = counts.tolist()
    used = rows[: sum(sizes)]
    made = rows.new_zeros(len(rows), len(parameters[2]))
    made[: len(used)] = _Mlps.apply(used, tuple(sizes), None, *parameters)
    return made


# What a compiled graph calls. To the compiler it is one operation, so that the number of rows of each expert, which
# depends on the images, does not break the graph.
_in_graph = torch.library.custom_op("sparse_mlp_ds::experts_in_turn", _as_one_operation, mutates_args=())


@_in_graph.register_fake
def _(rows: Tensor, counts: Tensor, parameters: list[Tensor]) -> Tensor:
    return rows.new_empty(rows.shape[0], parameters[2].shape[0])


class _Mlps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], factor: Tensor | None, *parameters: Tensor) -> Tensor:
        first_weight, _, second_weight, _ = parameters[:PARAMETERS]
        hidden = rows.new_empty(len(rows), len(first_weight))
        active = torch.empty_like(hidden)
        made = rows.new_empty(len(rows), len(second_weight))
        buffers = (rows, hidden, active, made)
        parts = zip(_by_expert(parameters), _factors(factor, sizes), *(b.split(sizes) for b in buffers), strict=True)
        for (w1, b1, w2, b2), f, x, h, a, y in parts:
            torch.addmm(b1, x, w1.t(), out=h)
            torch.ops.aten.gelu.out(h, out=a)
            if f is not None:
                a *= f
            torch.addmm(b2, a, w2.t(), out=y)
        ctx.sizes = sizes
        ctx.save_for_backward(rows, hidden, active, factor, *parameters)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, active, factor, *parameters = ctx.saved_tensors
        of_rows = torch.empty_like(rows)
        of_parameters: list[Tensor] = []
        buffers = (rows, hidden, active, of_rows, gradient)
        sizes = ctx.sizes
        parts = zip(_by_expert(parameters), _factors(factor, sizes), *(b.split(sizes) for b in buffers), strict=True)
        for (w1, _, w2, _), f, x, h, a, of_x, of_y in parts:
            of_a = of_y.mm(w2)
            if f is not None:
                of_a *= f
            of_h = torch.ops.aten.gelu_backward(of_a, h)
            torch.mm(of_h, w1, out=of_x)
            of_parameters += [of_h.t().mm(x), of_h.sum(dim=0), of_y.t().mm(a), of_y.sum(dim=0)]
        return of_rows, None, None, *of_parameters


def _by_expert(parameters: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [parameters[i : i + PARAMETERS] for i in range(0, len(parameters), PARAMETERS)]


def _factors(factor: Tensor | None, sizes: tuple[int, ...]) -> Sequence[Tensor | None]:
    """Return each expert's part of the factors."""
    return [None] * len(sizes) if factor is None else factor.split(sizes)
