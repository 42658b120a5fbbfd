"""Places for items: who gets one of an expert's limited slots when more items choose it than it may take.

Slots are counted inside *routing groups* of a fixed number of images (V-MoE 2.1), so that the outcome does not depend
on how many ranks share the batch. All first choices are placed before any second choice.
"""

import math

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices, Routes


def place(
    choices: Choices,
    experts: int,
    groups: int,
    capacity_factor: float | None,
    priority: str,
    draws: Tensor | None = None,
) -> Routes:
    """Return the routes that fit.

    groups: number of routing groups G that the N items form, in order; 0 if there are no items. capacity_factor: slots
    per expert and group over the even share K N / (G E); None places everything (evaluation). priority: `position`
    fills in array order, `importance` by the largest gate weight first: V-MoE's Batch Prioritized Routing (3.3), our
    reading of Sparse-MLP v3's importance-score routing, whose equation was not published; `random` by `draws` [N].
    """
    n, k = choices.expert.shape
    size = n // max(groups, 1)  # items of one group
    order = _filling_order(choices, groups, priority, draws)  # [N]
    # Routes in filling order: every group's first choices, then its second ones.
    item = order.view(groups, 1, size).expand(groups, k, size).reshape(-1)  # [G K N/G]
    choice = torch.arange(k, device=order.device).view(1, k, 1).expand(groups, k, size).reshape(-1)
    group = torch.arange(groups, device=order.device).repeat_interleave(k * size)
    expert = choices.expert[item, choice]

    # One stable sort by (expert, group) serves twice: it numbers the places inside each expert's share of a group, and
    # leaves the routes ready for dispatch.
    segment, by_segment = (expert * groups + group).sort(stable=True)
    item, choice = item[by_segment], choice[by_segment]
    if capacity_factor is not None:
        capacity = math.ceil(capacity_factor * k * size / experts)
        sizes = torch.bincount(segment, minlength=experts * groups)
        place_number = torch.arange(len(segment), device=segment.device) - (sizes.cumsum(0) - sizes)[segment]
        fits = place_number < capacity
        item, choice, segment = item[fits], choice[fits], segment[fits]
    counts = torch.bincount(segment // groups, minlength=experts)
    return Routes(item, choices.weight[item, choice], counts)


def _filling_order(choices: Choices, groups: int, priority: str, draws: Tensor | None) -> Tensor:
    """Return item numbers [N], each group's items together, in the order in which they are placed."""
    n = choices.expert.shape[0]
    size = n // max(groups, 1)
    if priority == "position":
        return torch.arange(n, device=choices.expert.device)
    score = draws if priority == "random" else choices.weight.detach()[:, 0]
    score = score.view(groups, size)
    inside = score.argsort(dim=1, descending=True, stable=True)  # [G, N/G]
    return (inside + torch.arange(groups, device=inside.device)[:, None] * size).view(-1)
