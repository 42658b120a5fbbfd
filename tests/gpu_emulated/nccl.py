"""Collectives of emulated GPUs: gloo carries them, and what NCCL would refuse raises."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as torch_dist
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import EmulatedTensor, held, refused

OF_TENSORS = (
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "gather", "scatter", "reduce_scatter",
    "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "send", "recv", "isend", "irecv",
)  # fmt: skip
BLOCKING = ("barrier", "all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list")
TYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8,
    torch.bool,
}  # fmt: skip

_on_the_host: set[Any] = set()
"""Groups that are gloo's beside GPUs too."""


def install() -> None:
    """Put the emulation into `torch.distributed`, where NCCL is not built in."""
    torch_dist.new_group = _new_group(torch_dist.new_group)
    torch_dist.init_process_group = _init_process_group(torch_dist.init_process_group)
    torch_dist.is_nccl_available = lambda: True
    for name in OF_TENSORS:
        setattr(torch_dist, name, _of_tensors(getattr(torch_dist, name), name))
    for name in BLOCKING:
        setattr(torch_dist, name, _blocking(getattr(torch_dist, name)))


def _init_process_group(init: Callable) -> Callable:
    @functools.wraps(init)
    def joined(backend: str | None = None, **options: Any) -> None:
        init("gloo" if backend == "nccl" else backend, **options)

    return joined


def _new_group(new_group: Callable) -> Callable:
    @functools.wraps(new_group)
    def made(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        group = new_group(*args, backend="gloo" if backend == "nccl" else backend, **kwargs)
        if backend == "gloo":
            _on_the_host.add(group)
        return group

    return made


def _is_on_the_host(leaves: list[Any]) -> bool:
    return any(x in _on_the_host for x in leaves if isinstance(x, torch_dist.ProcessGroup))


def _of_tensors(collective: Callable, name: str) -> Callable:
    @functools.wraps(collective)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if _is_on_the_host(leaves):
            if any(isinstance(x, EmulatedTensor) for x in tensors):
                raise refused(f"{name}: a CUDA tensor in a group of gloo")
            return collective(*args, **kwargs)
        for x in tensors:
            if not isinstance(x, EmulatedTensor):
                raise refused(f"{name}: no backend for a CPU tensor, of shape {tuple(x.shape)}, in a group of NCCL")
            if x.dtype not in TYPES:
                raise refused(f"{name}: NCCL does not know {x.dtype}")
            if not x.is_contiguous():
                raise refused(f"{name}: tensors must be contiguous, unlike that of shape {tuple(x.shape)}")
        counts.add("collectives")
        return collective(*tree_map(held, args), **tree_map(held, kwargs))

    return guarded


def _blocking(collective: Callable) -> Callable:
    """Collectives of Python objects travel through the device, and the host waits for them."""

    @functools.wraps(collective)
    def noted(*args: Any, **kwargs: Any) -> Any:
        if not _is_on_the_host(tree_leaves((args, kwargs))):
            counts.add("collectives")
            counts.add("synchronisations")
        return collective(*args, **kwargs)

    return noted
