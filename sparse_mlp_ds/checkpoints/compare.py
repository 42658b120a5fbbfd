"""Two checkpoints, tensor by tensor."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader

WEIGHTS = ("param/", "momentum/")
"""What tensors begin with that are weights; all others belong to an optimizer."""


@dataclass
class Difference:
    """What differs, by tensor."""

    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    """Largest absolute difference over the largest absolute value in either; NaN where one of them holds it."""
    equal: list[str] = field(default_factory=list)
    """Bit by bit."""

    @property
    def same_weights(self) -> bool:
        """Whether both hold the same weights, bit by bit, whatever became of the optimizer's state."""
        differing = [*self.only_first, *self.only_second, *self.shapes, *self.values]
        return not any(name.startswith(WEIGHTS) for name in differing)


def compare(first: Checkpoint, second: Checkpoint) -> Difference:
    """Compare all tensors of two checkpoints, one at a time. Raises UserError if one cannot be read."""
    a, b, found = Reader(first), Reader(second), Difference()
    for name in sorted(a.shapes.keys() | b.shapes.keys()):
        if name not in b.shapes:
            found.only_first.append(name)
        elif name not in a.shapes:
            found.only_second.append(name)
        elif a.shapes[name] != b.shapes[name]:
            found.shapes[name] = (a.shapes[name], b.shapes[name])
        else:
            one, other = a.whole(name), b.whole(name)
            if torch.equal(one.view(torch.int32), other.view(torch.int32)):
                found.equal.append(name)
            else:
                found.values[name] = _relative(one, other)
    return found


def _relative(one: Tensor, other: Tensor) -> float:
    largest = torch.maximum(one.abs().max(), other.abs().max())
    return float((one - other).abs().max() / largest) if largest > 0 else 0.0 * float(largest)
