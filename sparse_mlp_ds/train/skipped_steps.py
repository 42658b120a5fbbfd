"""Steps whose gradients are not finite: all ranks skip them and count them, and too many in a row end the run."""

from typing import Any

import torch
from torch import Tensor, nn

from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.errors import RunError


class SkippedSteps:
    """Counts the steps that an engine skips."""

    def __init__(self, module: nn.Module, limit: int, before: int = 0):
        """module: the network. limit: steps in a row that may be skipped. before: steps skipped before a restart."""
        self.module, self.limit, self.before = module, limit, before
        self.count = before
        self._in_a_row = 0
        self._first: str | None = None
        self._hooks: list[Any] = []

    def check(self, skipped: int) -> None:
        """Look at the step just done. skipped: the engine's count so far, the same on all ranks.

        Raises RunError above the limit; it names the parameter whose gradient was first not finite.
        """
        was_skipped, self.count = self.before + skipped > self.count, self.before + skipped
        if not was_skipped:
            self._in_a_row = 0
            self._watch(False)
            return
        self._in_a_row += 1
        self._watch(True)
        if self._in_a_row > self.limit:
            found = next((name for name in comm.gather_objects(self._first) if name), "no parameter, the loss itself")
            text = (
                f"{self._in_a_row} steps in a row had gradients that are not finite, first at {found}; lower the "
                "learning rate, or raise warmup_epochs"
            )
            raise comm.printed_by_rank_zero(RunError(text))

    def _watch(self, on: bool) -> None:
        """Check every gradient during the backward pass. It costs time, so it is on only after a step was skipped."""
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
