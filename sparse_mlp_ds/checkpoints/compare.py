"""Comparing two checkpoints tensor by tensor."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader

WEIGHTS = ("param/", "momentum/")
"""What the names of weights begin with; all other tensors belong to an optimizer."""


@dataclass
class Difference:
    """In which tensors two checkpoints differ."""

    only_first: list[str] = field(default_factory=list)
    """Names of tensors that only the first checkpoint holds."""
    only_second: list[str] = field(default_factory=list)
    """Names of tensors that only the second checkpoint holds."""
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Both shapes of each tensor whose shapes differ."""
    values: dict[str, float] = field(default_factory=dict)
    """For each tensor whose values differ, the largest absolute difference, divided by the largest absolute value in
    either checkpoint; NaN if one of the tensors holds NaN."""
    equal: list[str] = field(default_factory=list)
    """Names of tensors that are equal bit by bit."""

    @property
    def same_weights(self) -> bool:
        """Whether both hold the same weights, bit by bit; the optimizer's state may differ."""
        differing = [*self.only_first, *self.only_second, *self.shapes, *self.values]
        return not any(name.startswith(WEIGHTS) for name in differing)


def compare(first: Checkpoint, second: Checkpoint) -> Difference:
    """Compare all tensors of two checkpoints, one at a time. Raises UserError if a checkpoint cannot be read."""
    read_a, read_b, difference = Reader(first), Reader(second), Difference()
    for name in sorted(read_a.shapes.keys() | read_b.shapes.keys()):
        if name not in read_b.shapes:
            difference.only_first.append(name)
        elif name not in read_a.shapes:
            difference.only_second.append(name)
        elif read_a.shapes[name] != read_b.shapes[name]:
            difference.shapes[name] = (read_a.shapes[name], read_b.shapes[name])
        else:
            a, b = read_a.whole(name), read_b.whole(name)
            if torch.equal(a.view(torch.int32), b.view(torch.int32)):
                difference.equal.append(name)
            else:
                difference.values[name] = _relative(a, b)
    return difference


def _relative(a: Tensor, b: Tensor) -> float:
    largest = torch.maximum(a.abs().max(), b.abs().max())
    return float((a - b).abs().max() / largest) if largest > 0 else 0.0 * float(largest)
