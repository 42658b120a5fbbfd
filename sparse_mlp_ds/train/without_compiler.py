"""Keeps torch's compiler out of a process that compiles nothing, because importing it takes seconds."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Do without the import of torch's compiler within the `with` block, as far as nobody needs it.

    Optimizers and the meta device's kernels that are written in Python exclude themselves from being compiled, and
    import the compiler for that at their first call (torch 2.13: torch/_compile.py). Here there is nothing to be
    excluded from. Whatever else is asked of the compiler imports it after all. Only for processes that compile
    nothing later: functions that were called meanwhile stay as they are.
    """
    if NAME in sys.modules:
        yield
        return
    stand_in = ModuleType(NAME)
    vars(stand_in).update(
        disable=_same, graph_break=lambda: None, __getattr__=lambda name: getattr(_real(stand_in), name)
    )
    sys.modules[NAME] = torch._dynamo = stand_in
    try:
        yield
    finally:
        _remove(stand_in)


def _same(function: Callable[..., Any], recursive: bool = True, **options: Any) -> Callable[..., Any]:
    return function


def _real(stand_in: ModuleType) -> ModuleType:
    """Import the compiler after all."""
    _remove(stand_in)
    return importlib.import_module(NAME)


def _remove(stand_in: ModuleType) -> None:
    if sys.modules.get(NAME) is stand_in:
        del sys.modules[NAME], torch._dynamo
