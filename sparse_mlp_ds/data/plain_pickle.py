"""Pickles of dictionaries, lists, strings and uint8 arrays, read without calling anything that they ask for."""

import pickle
from typing import Any, BinaryIO

import numpy as np

_ARRAYS = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
)


class Array:
    """Stands in for an array or dtype of a pickle: with numpy's own, a pickle could make arrays of any pointers."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any):
        self.state = state

    def rows(self) -> np.ndarray:
        """Return the array, [R, C] uint8. Raises ValueError, AttributeError or TypeError if it is none."""
        _, shape, kind, is_fortran, content = self.state
        if is_fortran or kind.arguments[0] not in ("u1", b"u1"):
            raise ValueError("an array is not uint8 in rows")
        return np.frombuffer(content, np.uint8).reshape(shape)


def load(file: BinaryIO) -> Any:
    """Read a pickle; strings of Python 2 come as bytes, arrays as `Array`. Raises anything on hostile bytes."""
    return _Plain(file, encoding="bytes").load()


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for what arrays are made of, or what makes bytes of text."""
        if (module, name) in _ARRAYS:
            return Array
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
