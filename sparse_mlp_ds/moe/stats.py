"""How evenly the experts are used: small tensors that can be summed over steps and ranks, and figures from the sums."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices, Routes


@dataclass(frozen=True)
class MoEReport:
    """What one MoE layer reports about one forward pass."""

    balance: Tensor
    """Scalar: the layer's weighted balance loss, to be added to the objective; 0 in evaluation."""
    measure: Callable[[], Tensor]
    """Computes `sums`."""
    decided: tuple[Choices, Routes] | None = None
    """The router's choices, and the routes of those that got a slot; None from a stand-in that routes nothing."""

    @cached_property
    def sums(self) -> Tensor:
        """[E + 3] float32: choices per expert, all choices, choices without a slot, entropies of the gates summed up.

        Computed for the first who asks: nobody asks in a momentum encoder or in evaluation.
        """
        return self.measure()


Reports = dict[str, MoEReport]
"""Each MoE layer's report of one forward pass, by the layer's name."""


def measure(choices: Choices, routes: Routes, expert_choice: bool = False) -> Tensor:
    """Return `MoEReport.sums` for one forward pass.

    expert_choice: whether the experts chose. The choices are then theirs, and an item that no expert took counts as K
    dropped choices.
    """
    n, k = choices.expert.shape
    with torch.no_grad():
        log_p = choices.logits.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum()
        made = torch.full((1,), float(n * k), device=entropy.device)
        taken = routes.counts.sum()
        if expert_choice:
            taken = torch.zeros(n, device=entropy.device).index_fill(0, routes.item, 1.0).sum() * k
        return torch.cat([routes.asked.float(), made, made - taken, entropy.view(1)])


def read(sums: Tensor, top_k: int) -> dict[str, float]:
    """Return the figures of one layer from `MoEReport.sums`, added up over any number of passes.

    The figures are load_cv, the standard deviation of the choices per expert over their mean (0 is even); dropped, the
    share of choices without a slot; dead, the number of experts that no item chose; and entropy, the mean gate entropy
    over log E (1 is undecided).
    """
    asked, (made, dropped, entropy) = sums[:-3], sums[-3:].tolist()
    experts = len(asked)
    items = max(made / top_k, 1)
    return {
        "load_cv": float(asked.std(unbiased=False) / asked.mean().clamp_min(1e-9)),
        "dropped": dropped / max(made, 1),
        "dead": int((asked == 0).sum()),
        "entropy": entropy / items / torch.tensor(float(max(experts, 2))).log().item(),
    }
