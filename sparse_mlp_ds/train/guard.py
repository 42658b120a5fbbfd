"""Steps whose gradients are not finite: skipped by all ranks alike, counted, and too many of them end the run."""

from typing import Any

import torch
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.errors import RunError


class SkippedSteps:
    """Watches an engine's skipped steps."""

    def __init__(self, module: nn.Module, limit: int, before: int = 0):
        """limit: most steps in a row that may be skipped. before: skipped by earlier tries of the stage."""
        self.module, self.limit, self.before = module, limit, before
        self.count = before
        self._in_a_row = 0
        self._first: str | None = None
        self._hooks: list[Any] = []

    def check(self, skipped: int) -> None:
        """Take note of the step just done. skipped: the engine's count so far, the same on all ranks.

        Raises RunError past the limit, naming where the backward pass first met a value that is not finite.
        """
        was_skipped, self.count = self.before + skipped > self.count, self.before + skipped
        if not was_skipped:
            self._in_a_row = 0
            self._watch(False)
            return
        self._in_a_row += 1
        self._watch(True)
        if self._in_a_row > self.limit:
            found = next((name for name in dist.gather_objects(self._first) if name), "no parameter, the loss itself")
            text = (
                f"{self._in_a_row} steps in a row had gradients that are not finite, first at {found}; lower the "
                "learning rate, or raise warmup_epochs"
            )
            raise RunError(text if dist.rank() == 0 else "")

    def _watch(self, on: bool) -> None:
        """Look at every gradient as the backward pass makes it: it costs time, so it is done in need alone."""
        if on and not self._hooks:
            self._hooks = [
                parameter.register_hook(lambda gradient, name=name: self._look(name, gradient))
                for name, parameter in self.module.named_parameters()
                if parameter.requires_grad
            ]
        elif not on:
            for hook in self._hooks:
                hook.remove()
            self._hooks, self._first = [], None

    def _look(self, name: str, gradient: Tensor) -> None:
        if self._first is None and not torch.isfinite(gradient).all():
            self._first = name
