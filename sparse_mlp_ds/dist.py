"""Rank, world and the few collectives the trainer needs; all of them also work without a process group.

Rank and world come from the environment, where `discovery` has put them; without it the process is a world of one.
"""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import psutil
import torch
import torch.distributed as torch_dist
from torch import Tensor

from sparse_mlp_ds import discovery, host, rendezvous
from sparse_mlp_ds.errors import ReportedError, UserError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks of this run, known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return this process's rank, known before any process group exists."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return this process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", 0))


def ranks_here() -> int:
    """Return the number of this run's ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size())))


def device() -> torch.device:
    """Return the device this rank trains on."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def process_group(timeout_seconds: float = 600) -> Iterator[None]:
    """Join the run's process group (NCCL on GPUs, else gloo) and leave it at the end."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(discovery.free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    else:
        host.share_cores(ranks_here())
        host.keep_freed_memory()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    _choose_interface(os.environ["MASTER_ADDR"])  # beside NCCL too there are groups of gloo
    timeout = timedelta(seconds=timeout_seconds)
    # What groups get that are made without a word of it, DeepSpeed's among them; torch's own is 30 minutes.
    torch_dist.distributed_c10d.default_pg_timeout = torch_dist.distributed_c10d.default_pg_nccl_timeout = timeout
    store = rendezvous.join(rank(), world_size()) if world_size() > 1 else None
    if store is not None:
        store.set_timeout(timeout)  # new groups meet there; it had that of joining
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def all_reduce(tensor: Tensor) -> Tensor:
    """Return `tensor` summed over all ranks (in place)."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor, rows: Sequence[int] = ()) -> Tensor:
    """Return every rank's `tensor` [n, ...] concatenated in rank order, without gradient.

    rows: every rank's n, if they are not all alike.
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
    """Return `tensor` summed over all ranks; gradients flow back to every rank's part."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return tensor
    return _AllReduce.apply(tensor)


def exchange(rows: Tensor, sends: list[int], receives: list[int], group: torch_dist.ProcessGroup) -> Tensor:
    """All-to-all of rows [n, D] with exact counts; gradients travel the other way.

    The first sends[0] rows go to the group's rank 0, the next sends[1] to rank 1, ...; receives[r] rows come from
    rank r, in rank order. Any count may be 0.
    """
    return _AllToAll.apply(rows, sends, receives, group)


def gather_objects(value: T, group: torch_dist.ProcessGroup | None = None) -> list[T]:
    """Return every rank's (small, picklable) value in rank order, on every rank.

    group: of all ranks, instead of training's.
    """
    if not torch_dist.is_initialized():
        return [value]
    values: list[T] = [value] * torch_dist.get_world_size()
    torch_dist.all_gather_object(values, value, group=group)
    return values


def control_group() -> torch_dist.ProcessGroup | None:
    """Return a new gloo group of all ranks, for messages that must not meet training's; None for a single rank.

    Collective. Whatever travels there is in host memory, so a GPU never waits for it.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return None
    return torch_dist.new_group(backend="gloo")


def barrier() -> None:
    """Wait for every rank."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 alone; return its (small, picklable) result, or raise its UserError, on every rank."""
    if not torch_dist.is_initialized():
        return function()
    box: list[object] = [None]
    if rank() == 0:
        try:
            box = [function()]
        except UserError as error:
            torch_dist.broadcast_object_list([ReportedError(str(error))], src=0)
            raise
    torch_dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], ReportedError):
        raise box[0]
    return box[0]


def _choose_interface(master: str) -> None:
    """Let gloo use the interface that leads to the master, unless the user chose one.

    Left alone it takes the address of the host's own name, which Debian sets to 127.0.1.1: no other host reaches that.
    The master's own host, whose name may lead there too, takes that of its default route if others are to come.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # sends nothing, but makes the kernel choose a route
        except OSError as error:
            raise UserError(f"MASTER_ADDR {master}: no way leads there from {socket.gethostname()} ({error}); mend it")
        own = probe.getsockname()[0]
    if own.startswith("127.") and ranks_here() < world_size():
        own = discovery.own_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _AllReduce.forward(ctx, gradient.contiguous())


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, sends, receives, group):
        ctx.route = (sends, receives, group)
        result = rows.new_empty(sum(receives), *rows.shape[1:])
        torch_dist.all_to_all_single(result, rows.contiguous(), receives, sends, group=group)
        return result

    @staticmethod
    def backward(ctx, gradient):
        sends, receives, group = ctx.route
        return _AllToAll.forward(ctx, gradient, receives, sends, group), None, None, None
