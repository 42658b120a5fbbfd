"""Bytes of the tensors that are alive, counted on torch's meta device, which allocates and computes nothing."""

import weakref
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class LiveBytes(TorchDispatchMode):
    """Counts the storages on the meta device that operations inside its `with` block make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """The most bytes that were alive at a time."""
        self._alive: dict[int, weakref.ref] = {}
        self._made: dict[Hashable, Any] = {}  # what an operation made of arguments of the same shapes and types

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # no compiler is at work here, and its import takes longer than everything else

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        result = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation, or make what it made before: torch finds out shapes in Python, which is slow."""
        if not _makes_new(func):
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        try:
            known = self._made.get(key)
        except TypeError:  # an argument that cannot be hashed
            return func(*args, **kwargs)
        if known is not None:
            return tree_map(lambda make: make and make(), known)
        result = func(*args, **kwargs)
        if all(tensor is None or tensor.is_meta for tensor in tree_leaves(result)):
            self._made[key] = tree_map(_maker, result)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._alive:
            return

        def freed(_: weakref.ref) -> None:
            del self._alive[number]
            self.now -= size

        self._alive[number] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@cache
def _makes_new(func: Any) -> bool:
    """Return whether an operation returns new tensors only, and changes none."""
    schema = func._schema
    kinds = {str(result.type) for result in schema.returns}
    return kinds == {"Tensor"} and not schema.is_mutable and not any(r.alias_info for r in schema.returns)


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return type(value), value


def _maker(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    size, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device="meta")
