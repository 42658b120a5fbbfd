"""Which collectives a piece of code calls on this rank, with how many bytes; whoever calls them, DeepSpeed included."""

from dataclasses import dataclass

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
"""torch's names of those that get a name of their own here; others keep torch's."""


@dataclass(frozen=True)
class Call:
    """One call of one rank."""

    kind: str
    ranks: int
    """Ranks of its group."""
    bytes: int
    """What this rank brings, without any protocol's own."""
    sent: int
    """All-to-all only: the part of it whose destination is another rank."""
    integers: bool
    """Whether it carries whole numbers: an all-to-all of counts, not of rows."""


class Counted(TorchDispatchMode):
    """Notes the collectives that start inside the context, in `calls`. Slows everything down: time nothing in it."""

    def __init__(self):
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            self.calls.append(_call(function._schema.name.removeprefix("c10d::"), args))
        return function(*args, **(kwargs or {}))


def _call(name: str, args: tuple) -> Call:
    group = next(torch_dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject))
    if name == "alltoall_base_":
        brings, splits = args[1], args[4]
        size = brings.nbytes
        splits = splits or [len(brings) // group.size()] * group.size()
        sent = size - splits[group.rank()] * (size // len(brings)) if len(brings) else 0
    else:
        # Both tensors of an all-gather or reduce-scatter are given, what comes out and then what goes in.
        brings = args[1] if KINDS.get(name) in ("all_gather", "reduce_scatter") else args[0]
        while isinstance(brings, (list, tuple)):
            brings = brings[0]
        size, sent = brings.nbytes, 0
    return Call(KINDS.get(name, name), group.size(), size, sent, not brings.is_floating_point())
