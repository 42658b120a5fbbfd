"""Counts the collectives that a piece of code calls on this rank, DeepSpeed's included, and their bytes."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "alltoall_base_": "all_to_all",
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
}
"""torch's name of a collective -> its name here; collectives that are not listed keep torch's name."""


@dataclass(frozen=True)
class Call:
    """One call of a collective by one rank."""

    kind: str
    """Name of the collective, see `KINDS`."""
    ranks: int
    """Ranks of the group that takes part."""
    bytes: int
    """Bytes that this rank contributes, without what the protocol adds."""
    sent: int
    """Of an all-to-all: the bytes that go to other ranks; 0 for all other collectives."""
    integers: bool
    """Whether the data are whole numbers: an all-to-all of row counts, not of rows."""


class Counted(TorchDispatchMode):
    """Records in `calls` the collectives that start inside the context.

    It slows everything down, so nothing should be timed inside it.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.calls.append(_call(function._schema.name.removeprefix("c10d::"), args))
        return function(*args, **(kwargs or {}))


def _call(name: str, args: tuple[Any, ...]) -> Call:
    group = next(torch_dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
    if name == "alltoall_base_":
        data, splits = args[1], args[4]
        size = data.nbytes
        splits = splits or [len(data) // group.size()] * group.size()
        sent = size - splits[group.rank()] * (size // len(data)) if len(data) else 0
    else:
        # An all-gather or reduce-scatter is given two tensors, first the output and then the input.
        data = args[1] if KINDS.get(name) in ("all_gather", "reduce_scatter") else args[0]
        while isinstance(data, (list, tuple)):
            data = data[0]
        size, sent = data.nbytes, 0
    return Call(KINDS.get(name, name), group.size(), size, sent, not data.is_floating_point())
