"""Notes, on any machine, the operations for which the host of a GPU would wait."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "is_nonzero")


class Waits(TorchDispatchMode):
    """`seen`: names of the operations whose result the host reads, and of those that have a mask among their indices.

    Reading several values at once, as `.tolist()` does, counts once for each on a CPU.
    """

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in ("index", "index_put") else []
        )
        if name in OPERATIONS or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
