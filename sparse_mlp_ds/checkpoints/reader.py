"""Reading any part of any tensor of a checkpoint, over however many files its pieces are spread."""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.errors import UserError, one_line

_FLOATS = ("F64", "F32", "F16", "BF16")
_KEY = re.compile(r"(.+)@(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class _StoredPiece:
    """Where the elements `start` to `stop` - 1 of a tensor are stored."""

    start: int
    stop: int
    file: Any
    key: str


class Reader:
    """Reads tensors of a checkpoint, and no more of its files than is asked for."""

    def __init__(self, checkpoint: Checkpoint):
        """Open the files of a checkpoint.

        Raises UserError unless all pieces are floating-point, lie inside their tensor and do not overlap.
        """
        self.checkpoint = checkpoint
        self.shapes: dict[str, list[int]] = checkpoint.manifest["tensors"]
        self._pieces: dict[str, list[_StoredPiece]] = {name: [] for name in self.shapes}
        for name in checkpoint.manifest["files"]:
            self._list(checkpoint.path / name)
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            if any(piece.stop > following.start for piece, following in pairwise(pieces)):
                raise UserError(f"{checkpoint.path}: pieces of '{name}' overlap; use another checkpoint")

    def __call__(self, name: str, start: int, count: int) -> Tensor:
        """Return `count` elements of a tensor from position `start` on, flat: [count] float32.

        Raises UserError if any of them is missing.
        """
        parts = [
            (max(start, piece.start), min(start + count, piece.stop), piece) for piece in self._pieces.get(name, ())
        ]
        stored = sum(max(high - low, 0) for low, high, _ in parts)
        if stored != count:
            raise UserError(
                f"{self.checkpoint.path}: holds {stored} of the {count} elements wanted of '{name}'; "
                "it was written by a different model or is incomplete; use another checkpoint"
            )
        result = torch.empty(count)
        for low, high, piece in parts:
            if low < high:
                values = piece.file.get_slice(piece.key)[low - piece.start : high - piece.start]
                result[low - start : high - start] = values
        return result

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor in its shape, float32. Raises UserError if any of it is missing."""
        shape = self.shapes.get(name, [1])
        return self(name, 0, math.prod(shape)).view(shape)

    def check_complete(self) -> None:
        """Raise UserError naming the first tensor that has missing elements."""
        for name, shape in self.shapes.items():
            stored, count = sum(piece.stop - piece.start for piece in self._pieces[name]), math.prod(shape)
            if stored != count:
                raise UserError(
                    f"{self.checkpoint.path}: holds {stored} of the {count} elements of '{name}'; "
                    "use another checkpoint"
                )

    def _list(self, path: Path) -> None:
        """Note which pieces a file holds. Raises UserError."""
        try:
            file = safe_open(path, framework="pt")
            keys = list(file.keys())
            slices = [file.get_slice(key) for key in keys]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({one_line(error)})") from None
        for key, piece in zip(keys, slices, strict=True):
            match = _KEY.fullmatch(key)
            if match is None or match[1] not in self.shapes:
                raise UserError(f"{path}: {ascii(key[:80])} is no piece of a tensor that the manifest names")
            name, start, shape = match[1], int(match[2]), piece.get_shape()
            if len(shape) != 1 or start + shape[0] > math.prod(self.shapes[name]):
                raise UserError(f"{path}: '{key}' of shape {shape} lies outside '{name}' of {self.shapes[name]}")
            if piece.get_dtype() not in _FLOATS:
                raise UserError(f"{path}: '{key}' is of type {piece.get_dtype()}, not floating-point")
            self._pieces[name].append(_StoredPiece(start, start + shape[0], file, key))
