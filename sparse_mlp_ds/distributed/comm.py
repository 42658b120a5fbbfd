"""The few collectives that the trainer needs; all of them also work without a process group, as for a single rank.

Every function here that communicates is collective: all ranks of the group must call it, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import RunError, UserError, explained, printed_by_one

T = TypeVar("T")


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks in place and return it, without gradient."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor, rows: Sequence[int] = ()) -> Tensor:
    """Return every rank's `tensor` [n, ...] concatenated in rank order, without gradient.

    rows: every rank's n, where ranks have different numbers of rows.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return tensor.detach()
    rows = rows or [len(tensor)] * torch_dist.get_world_size()
    most = max(rows)
    padded = torch.cat([tensor.detach(), tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
    parts = [torch.empty_like(padded) for _ in rows]
    torch_dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])


def total(tensor: Tensor) -> Tensor:
    """Return `tensor` summed over all ranks; gradients flow back to every rank's summand."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return tensor
    return _AllReduce.apply(tensor)


def exchange(rows: Tensor, sends: list[int], receives: list[int], group: torch_dist.ProcessGroup) -> Tensor:
    """Send rows to the ranks of a group and return the rows received (all-to-all); gradients travel the way back.

    Args:
        rows: [n, D]; the first sends[0] rows go to the group's rank 0, the next sends[1] rows to rank 1, ...
        sends: Number of rows for each rank of the group, 0 allowed; their sum is n.
        receives: Number of rows that come from each rank of the group, 0 allowed.
        group: The process group.

    Returns [sum(receives), D], in the order of the ranks that the rows come from.
    """
    return _AllToAll.apply(rows, sends, receives, group)


def gather_objects(value: T, group: torch_dist.ProcessGroup | None = None) -> list[T]:
    """Return every rank's (small, picklable) value in rank order, on every rank.

    group: a group of all ranks that carries the messages, such as a control group; None takes the group of training.
    """
    if not torch_dist.is_initialized():
        return [value]
    values: list[T] = [value] * torch_dist.get_world_size()
    torch_dist.all_gather_object(values, value, group=group)
    return values


def barrier() -> None:
    """Wait until every rank has called this."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def wait(work: torch_dist.Work) -> None:
    """Wait for a collective that was started with `async_op=True`.

    Call this instead of `work.wait()`, which leaves no trace in a Python stack: the watchdog tells ranks that wait from
    the rank they wait for by frames of this file and of torch.distributed (see `watchdog.client`).
    """
    work.wait()


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 alone and return its (small, picklable) result on every rank.

    If it raises an error that a user can mend, every rank does: rank 0 a UserError, the other ranks ReportedError,
    which is not printed.
    """
    if not torch_dist.is_initialized():
        return function()
    result: list[Any] = [None, None]  # what the function returns, the text of its UserError
    if process_group.rank() == 0:
        try:
            result[0] = function()
        except Exception as error:
            if not isinstance(better := explained(error), UserError):
                raise
            result[1] = str(better)
    torch_dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise printed_by_rank_zero(UserError(result[1]))
    return result[0]


def printed_by_rank_zero(error: UserError | RunError) -> UserError | RunError:
    """Return the exception to raise for an error that all ranks raise and rank 0 prints. Communicates nothing."""
    return printed_by_one(error, here=process_group.rank() == 0)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return all_reduce(gradient.clone(memory_format=torch.contiguous_format))


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sends: list[int], receives: list[int], group: torch_dist.ProcessGroup
    ) -> Tensor:
        ctx.sends, ctx.receives, ctx.group = sends, receives, group
        return _all_to_all(rows, sends, receives, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradient, ctx.receives, ctx.sends, ctx.group), None, None, None


def _all_to_all(rows: Tensor, sends: list[int], receives: list[int], group: torch_dist.ProcessGroup) -> Tensor:
    result = rows.new_empty(sum(receives), *rows.shape[1:])
    torch_dist.all_to_all_single(result, rows.contiguous(), receives, sends, group=group)
    return result
