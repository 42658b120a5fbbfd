"""How well the experts are used: small tensors that are summed over steps and ranks, and the figures read from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices, Routes


@dataclass(frozen=True)
class MoEReport:
    """What one MoE layer says about one forward pass."""

    balance: Tensor
    """Scalar: lambda (L_imp + L_load) / 2, to be added to the objective; 0 without keys."""
    sums: Tensor
    """[E + 3] float32: choices per expert, then choices made, choices without a place, summed entropy of the gates."""


Reports = dict[str, MoEReport]
"""Each MoE layer's report of one forward pass, by the layer's name."""


def measure(choices: Choices, routes: Routes, expert_choice: bool = False) -> Tensor:
    """Return the sums of `MoEReport` for one forward pass.

    Under expert-choice routing a choice is an expert's, and an item that nobody took counts as K dropped ones.
    """
    n, k = choices.expert.shape
    experts = choices.logits.shape[1]
    with torch.no_grad():
        asked = routes.counts if expert_choice else torch.bincount(choices.expert.flatten(), minlength=experts)
        log_p = choices.logits.log_softmax(dim=-1)
        entropy = -(log_p.exp() * log_p).sum()
        made = torch.full((1,), float(n * k), device=asked.device)
        taken = torch.zeros(n, device=asked.device).index_fill(0, routes.item, 1.0).sum() * k
        dropped = made - (taken if expert_choice else routes.counts.sum())
        return torch.cat([asked.float(), made, dropped, entropy.view(1)])


def read(sums: Tensor, top_k: int) -> dict[str, float]:
    """Return the figures of one layer from sums over any number of passes.

    load_cv: standard deviation over mean of the choices per expert, 0 is even. dropped: share of choices that got no
    place. dead: experts nobody chose. entropy: mean gate entropy over log E, 1 is undecided.
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
