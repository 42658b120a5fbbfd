"""Any part of any tensor of a checkpoint, however many files its pieces lie in."""

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
from sparse_mlp_ds.errors import UserError

_FLOATS = ("F64", "F32", "F16", "BF16")
_KEY = re.compile(r"(.+)@(0|[1-9][0-9]{0,17})")


@dataclass(frozen=True)
class _Piece:
    """Where elements start .. stop - 1 of a tensor lie."""

    start: int
    stop: int
    file: Any
    key: str


class Reader:
    """Opens a checkpoint's files and reads no more of them than is asked for."""

    def __init__(self, checkpoint: Checkpoint):
        """Raises UserError unless every piece is floating-point, inside its tensor, and overlaps no other."""
        self.checkpoint = checkpoint
        self.shapes: dict[str, list[int]] = checkpoint.manifest["tensors"]
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in self.shapes}
        for name in checkpoint.manifest["files"]:
            self._list(checkpoint.path / name)
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            if any(piece.stop > following.start for piece, following in pairwise(pieces)):
                raise UserError(f"{checkpoint.path}: pieces of '{name}' overlap; use another checkpoint")

    def __call__(self, name: str, start: int, count: int) -> Tensor:
        """Return elements start .. start + count - 1 of a tensor, flat, float32. Raises UserError if any is missing."""
        parts = [
            (max(start, piece.start), min(start + count, piece.stop), piece) for piece in self._pieces.get(name, ())
        ]
        found = sum(max(high - low, 0) for low, high, _ in parts)
        if found != count:
            raise UserError(
                f"{self.checkpoint.path}: holds {found} of the {count} elements wanted of '{name}'; "
                "it was written by another model or is incomplete"
            )
        result = torch.empty(count)
        for low, high, piece in parts:
            if low < high:
                values = piece.file.get_slice(piece.key)[low - piece.start : high - piece.start]
                result[low - start : high - start] = values
        return result

    def whole(self, name: str) -> Tensor:
        """Return a tensor in its shape. Raises UserError if it is not there, or not all of it."""
        shape = self.shapes.get(name, [1])
        return self(name, 0, math.prod(shape)).view(shape)

    def check_complete(self) -> None:
        """Raise UserError naming the first tensor of which something is missing."""
        for name, shape in self.shapes.items():
            found, count = sum(piece.stop - piece.start for piece in self._pieces[name]), math.prod(shape)
            if found != count:
                raise UserError(
                    f"{self.checkpoint.path}: holds {found} of the {count} elements of '{name}'; use another checkpoint"
                )

    def _list(self, path: Path) -> None:
        """Take down what pieces a file holds."""
        try:
            file = safe_open(path, framework="pt")
            keys = list(file.keys())
            slices = [file.get_slice(key) for key in keys]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a safetensors file ({' '.join(str(error).split())})") from None
        for key, piece in zip(keys, slices, strict=True):
            found = _KEY.fullmatch(key)
            if found is None or found[1] not in self.shapes:
                raise UserError(f"{path}: {ascii(key[:80])} is no piece of a tensor that the manifest names")
            name, start, shape = found[1], int(found[2]), piece.get_shape()
            if len(shape) != 1 or start + shape[0] > math.prod(self.shapes[name]):
                raise UserError(f"{path}: '{key}' of shape {shape} lies outside '{name}' of {self.shapes[name]}")
            if piece.get_dtype() not in _FLOATS:
                raise UserError(f"{path}: '{key}' is of type {piece.get_dtype()}, not floating-point")
            self._pieces[name].append(_Piece(start, start + shape[0], file, key))
