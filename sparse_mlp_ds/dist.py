"""Rank, world and the few collectives the trainer needs; all of them also work without a process group.

Rank and world come from the environment that `deepspeed` and `torchrun` set; without it the process is a world of one.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as torch_dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks of this run, known before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return this process's rank, known before any process group exists."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return this process's number on its host."""
    return int(os.environ.get("LOCAL_RANK", 0))


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
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    else:
        # Each rank takes its share of the cores: with more threads than cores, small models train several times slower.
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size())))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch_dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def all_reduce(tensor: Tensor) -> Tensor:
    """Return `tensor` summed over all ranks (in place)."""
    if torch_dist.is_initialized():
        torch_dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """Return every rank's `tensor` [n, ...] concatenated in rank order, [world * n, ...], without gradient."""
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(torch_dist.get_world_size())]
    torch_dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait for every rank."""
    if torch_dist.is_initialized():
        torch_dist.barrier()


def from_rank_zero(value: object) -> object:
    """Return rank 0's `value` (small, picklable) on every rank."""
    if not torch_dist.is_initialized():
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
