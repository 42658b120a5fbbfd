"""What a router decided: one frozen record that dispatch, losses and statistics read.

Shape letters, used in every file of this package: B images, T items per image (channels in MoE_S, patches in MoE_C),
N = B T items, D item length, E experts, K choices per item, G routing groups, R routes that got a place.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Choices:
    """Each item's chosen experts, before capacity."""

    expert: Tensor
    """[N, K] int64, global expert ids, best first."""
    weight: Tensor
    """[N, K] float32, softmax values as they are (Sparse-MLP 2.1 does not renormalise them)."""
    logits: Tensor
    """[N, E] float32, without noise."""
    noisy_logits: Tensor
    """[N, E] float32; the same tensor as `logits` where no noise was drawn."""

    @property
    def probabilities(self) -> Tensor:
        """[N, E] float32, softmax of the noisy logits: the gate before top-k."""
        return self.noisy_logits.softmax(dim=-1)


@dataclass(frozen=True)
class Routes:
    """The choices that got a place, sorted by expert."""

    item: Tensor
    """[R] int64, which item each route carries."""
    weight: Tensor
    """[R] float32, the gate weight of each route."""
    counts: Tensor
    """[E] int64, routes per expert; their sum is R."""
