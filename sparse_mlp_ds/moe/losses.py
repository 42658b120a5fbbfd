"""Balance losses of Sparse-MLP (2.2, taken over from V-MoE): pure functions, averaged over routing groups.

On a rank without items there are no groups, and the losses are 0. They are computed from variances, because the
derivative of a standard deviation is infinite at perfect balance.
"""

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices


def importance_loss(choices: Choices, groups: int) -> Tensor:
    """Return L_imp = (std(Imp) / mean(Imp))^2, a scalar, where Imp_e is the sum over items of softmax(W x)_e.

    The logits W x are those without noise.
    """
    return _squared_variation(_importance(choices, groups))


def load_loss(choices: Choices, groups: int, noise_std: float) -> Tensor:
    """Return L_load = (std(Load) / mean(Load))^2, a scalar.

    Load_e is the sum over items of P(expert e stays among the K chosen if its noise alone is drawn again), which is
    1 - Phi((threshold - (W x)_e) / noise_std) with the K-th largest *noisy* logit as threshold (V-MoE, A.2).
    noise_std: above 0, because without noise there is no such probability.
    """
    return _squared_variation(_load(choices, groups, noise_std))


def importance_and_load_loss(choices: Choices, groups: int, noise_std: float) -> Tensor:
    """Return L_imp + L_load, a scalar, in fewer operations than one after the other."""
    both = torch.stack([_importance(choices, groups), _load(choices, groups, noise_std)])
    return _squared_variation(both).sum()


def switch_loss(choices: Choices, groups: int) -> Tensor:
    """Return E x sum over experts of f_e P_e, a scalar, averaged over groups (Switch Transformer, eq. 4; GShard).

    f_e is the share of all choices that went to expert e, and P_e its mean probability. The minimum is 1, where both
    are even.
    """
    probabilities = choices.probabilities
    chosen = torch.zeros_like(probabilities).scatter_(1, choices.expert, 1.0 / choices.expert.shape[1])
    share, mean = (_by_group(x, groups).mean(dim=1) for x in (chosen, probabilities))
    return probabilities.shape[1] * _mean((share * mean).sum(dim=-1))


def z_loss(choices: Choices) -> Tensor:
    """Return the mean over items of (log sum exp of the logits)^2, a scalar that keeps logits small (ST-MoE, eq. 5)."""
    return _mean(choices.logits.logsumexp(dim=-1).square())


def _importance(choices: Choices, groups: int) -> Tensor:
    """Return Imp of every group: [G, E]."""
    return _by_group(choices.logits.softmax(dim=-1), groups).sum(dim=1)


def _load(choices: Choices, groups: int, noise_std: float) -> Tensor:
    """Return Load of every group: [G, E]."""
    k = choices.expert.shape[1]
    threshold = choices.noisy_logits.topk(k, dim=-1).values[:, -1:]  # [N, 1]
    stays = torch.special.ndtr((choices.logits - threshold) / noise_std)  # [N, E]
    return _by_group(stays, groups).sum(dim=1)


def _by_group(x: Tensor, groups: int) -> Tensor:
    return x.view(groups, len(x) // max(groups, 1), x.shape[-1])  # [N, E] -> [G, N/G, E]


def _mean(x: Tensor) -> Tensor:
    """Return the mean over the last axis, 0 if it is empty."""
    return x.sum(dim=-1) / max(x.shape[-1], 1)


def _squared_variation(x: Tensor) -> Tensor:
    """Return the mean over groups of var(x) / mean(x)^2, for x [..., G, E] and population variances: [...]."""
    mean = x.mean(dim=-1)
    variance = x.var(dim=-1, unbiased=False)
    return _mean(variance / mean.square().clamp_min(torch.finfo(x.dtype).tiny))
