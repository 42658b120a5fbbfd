"""Balance losses of Sparse-MLP (2.2, taken over from V-MoE): pure functions, averaged over routing groups.

A rank without items has no group, and a loss of 0. They are computed on variances: the derivative of a standard
deviation is infinite at perfect balance.
"""

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices


def importance_loss(choices: Choices, groups: int) -> Tensor:
    """L_imp = (std(Imp) / mean(Imp))^2 with Imp_e = sum over items of softmax(W x)_e, noise-free. Returns a scalar."""
    probabilities = choices.logits.softmax(dim=-1)
    return _squared_variation(_by_group(probabilities, groups).sum(dim=1))


def load_loss(choices: Choices, groups: int, noise_std: float) -> Tensor:
    """L_load = (std(Load) / mean(Load))^2 with Load_e = sum over items of P(expert e stays among the K chosen).

    P = 1 - Phi((threshold - (W x)_e) / noise_std) where the threshold is the K-th largest *noisy* logit and only the
    noise of expert e is drawn again (V-MoE, A.2). Needs noise: a deterministic gate has no such probability.
    """
    k = choices.expert.shape[1]
    threshold = choices.noisy_logits.topk(k, dim=-1).values[:, -1:]  # [N, 1]
    stays = torch.special.ndtr((choices.logits - threshold) / noise_std)  # [N, E]
    return _squared_variation(_by_group(stays, groups).sum(dim=1))


def switch_loss(choices: Choices, groups: int) -> Tensor:
    """E x sum_e f_e P_e, f the share of choices and P the mean probability of each expert (Switch, eq. 4; GShard).

    Minimal, at 1, when both are even; averaged over groups.
    """
    probabilities = choices.probabilities
    chosen = torch.zeros_like(probabilities).scatter_(1, choices.expert, 1.0 / choices.expert.shape[1])
    share, mean = (_by_group(x, groups).mean(dim=1) for x in (chosen, probabilities))
    return probabilities.shape[1] * _mean((share * mean).sum(dim=-1))


def z_loss(choices: Choices) -> Tensor:
    """Mean over items of (log sum exp of the logits)^2, which keeps logits small (ST-MoE, eq. 5). Returns a scalar."""
    return _mean(choices.logits.logsumexp(dim=-1).square())


def _by_group(x: Tensor, groups: int) -> Tensor:
    return x.view(groups, len(x) // max(groups, 1), x.shape[-1])  # [N, E] -> [G, N/G, E]


def _mean(x: Tensor) -> Tensor:
    """Mean of a vector, 0 if it is empty."""
    return x.sum() / max(len(x), 1)


def _squared_variation(x: Tensor) -> Tensor:
    """Mean over groups of var(x) / mean(x)^2, x: [G, E], population variance."""
    mean = x.mean(dim=-1)
    variance = x.var(dim=-1, unbiased=False)
    return _mean(variance / mean.square().clamp_min(torch.finfo(x.dtype).tiny))
