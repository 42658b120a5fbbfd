"""What a router decided: the records that dispatch, losses and statistics read.

Shape letters, used in every file of this package: B images, T items per image (channels in MoE_S, patches in MoE_C),
N = B T items, D item length, E experts, K choices per item, G routing groups, R routes, which are choices with a slot.

Keys, where a function takes them, are random keys as `rng.sample_keys` makes them: all random draws of an image are a
function of its key, and are therefore the same on any number of ranks.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """Each item's chosen experts, before capacity."""

    expert: Tensor
    """[N, K] int64: global ids of the chosen experts, best first."""
    weight: Tensor
    """[N, K] float32: gate weights of the chosen experts, from a softmax over all E (Sparse-MLP 2.1 does not
    renormalise them)."""
    logits: Tensor
    """[N, E] float32: router logits without noise."""
    noisy_logits: Tensor
    """[N, E] float32: router logits with noise; the same tensor as `logits` where no noise was drawn."""

    @property
    def probabilities(self) -> Tensor:
        """[N, E] float32: the gate before top-k, which is the softmax of the noisy logits."""
        return self.noisy_logits.softmax(dim=-1)


@dataclass(frozen=True)
class Routes:
    """Items on their way to experts, sorted by expert; choices that got no slot, if there are any, lie behind them."""

    item: Tensor
    """[R] int64: the item that each route carries."""
    choice: Tensor | None
    """[R] int64: which of its item's K choices each route is, and R = N K; None if the experts chose."""
    weight: Tensor
    """[R] float32: the gate weight of each route."""
    counts: Tensor
    """[E] int64: routes per expert."""
    asked: Tensor
    """[E] int64: choices per expert, with or without a slot."""

    def kept(self) -> "Routes":
        """Return the routes that got a slot alone. The host waits for the device, which knows their number."""
        return self.first(int(self.counts.sum()))

    def first(self, number: int) -> "Routes":
        """Return the first routes alone; `counts.sum()` of them are those that got a slot."""
        if self.choice is None or number == len(self.item):
            return self
        return replace(self, item=self.item[:number], choice=self.choice[:number], weight=self.weight[:number])

    def by_item(self, top_k: int) -> Tensor:
        """Return [N, K] int64, the place here of each item's choices. The routes must be those of all choices."""
        assert self.choice is not None
        places = torch.arange(len(self.item), device=self.item.device)
        return torch.empty_like(places).scatter_(0, self.item * top_k + self.choice, places).view(-1, top_k)
