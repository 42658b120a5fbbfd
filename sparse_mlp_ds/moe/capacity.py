"""Expert capacity: which items get one of an expert's limited slots when more items choose it than it may take.

Slots are counted inside *routing groups* of a fixed number of images (V-MoE 2.1), so the result does not depend on how
many ranks share the batch. All first choices get their slots before any second choice.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sparse_mlp_ds.moe.routes import Choices, Routes


def slots(factor: float, choices: int, experts: int, multiple: int = 1) -> int:
    """Return the slots of one expert in one routing group: ceil(factor x choices / experts), exactly.

    In floating point, 1.1 x 400 / 8 is a little more than 55, and one slot too many; here the factor counts to its
    sixth decimal place, in whole numbers.

    Args:
        factor: the capacity factor.
        choices: items of the group times choices per item.
        experts: number of experts E.
        multiple: the result is rounded up to a multiple of it.
    """
    millionths = max(round(factor * 1_000_000), 1)
    return -(-millionths * choices // (1_000_000 * experts * multiple)) * multiple


def place(
    choices: Choices,
    experts: int,
    groups: int,
    capacity_factor: float | None,
    priority: str,
    draws: Tensor | None = None,
    multiple: int = 1,
) -> Routes:
    """Give the choices slots; in the routes returned, those that got none are behind those that did.

    Args:
        choices: the router's choices for N items.
        experts: number of experts E.
        groups: number of routing groups G into which the N items fall, in order; 0 if there are no items.
        capacity_factor: slots per expert and group, as a multiple of the even share K N / (G E). None gives every
            choice a slot (evaluation).
        priority: which items come first. `position`: in array order. `importance`: largest gate weight first, which is
            V-MoE's Batch Prioritized Routing (3.3), and our reading of Sparse-MLP v3's importance-score routing, whose
            equation was not published. `random`: largest value of `draws` first.
        draws: [N] random numbers, needed for `random` alone.
        multiple: slots per expert and group are rounded up to a multiple of it.
    """
    n, k = choices.expert.shape
    size = n // max(groups, 1)  # items of one group
    order = _filling_order(choices, groups, priority, draws)  # [N]
    # Routes in filling order: every group's first choices, then its second ones.
    item = order.view(groups, 1, size).expand(groups, k, size).reshape(-1)  # [G K N/G]
    choice, group, position = _filled(groups, k, size, order.device)
    expert = choices.expert[item, choice]

    # One stable sort by (expert, group) serves twice: it numbers each expert's slots inside a group, and leaves the
    # routes in the order of dispatch. Nothing here makes the host wait for a GPU.
    segment, by_segment = (expert * groups + group).sort(stable=True)
    item, choice = item[by_segment], choice[by_segment]
    starts = torch.searchsorted(segment, torch.arange(experts * groups + 1, device=segment.device))
    sizes = starts.diff()
    asked = counts = sizes.view(experts, groups).sum(dim=1)
    if capacity_factor is not None:
        capacity = slots(capacity_factor, k * size, experts, multiple)
        counts = sizes.clamp_max(capacity).view(experts, groups).sum(dim=1)
        fits = position - starts[segment] < capacity
        # Those that fit keep their order in front, the rest theirs behind.
        before = fits.cumsum(0)
        target = torch.where(fits, before - 1, counts.sum() + position - before)
        item, choice = (torch.empty_like(x).scatter_(0, target, x) for x in (item, choice))
    return Routes(item, choice, choices.weight.flatten().gather(0, item * k + choice), counts, asked)


@lru_cache(maxsize=16)
def _filled(groups: int, k: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return choice, group and position of the routes in filling order, [G K N/G] each; made once for each shape."""
    choice = torch.arange(k, device=device).view(1, k, 1).expand(groups, k, size).reshape(-1)
    group = torch.arange(groups, device=device).repeat_interleave(k * size)
    return choice, group, torch.arange(len(group), device=device)


def _filling_order(choices: Choices, groups: int, priority: str, draws: Tensor | None) -> Tensor:
    """Return item numbers [N], each group's items together, in the order in which they get slots."""
    n = choices.expert.shape[0]
    size = n // max(groups, 1)
    if priority == "position":
        return torch.arange(n, device=choices.expert.device)
    score = choices.weight.detach()[:, 0]
    if priority == "random":
        assert draws is not None
        score = draws
    inside = score.view(groups, size).argsort(dim=1, descending=True, stable=True)  # [G, N/G]
    return (inside + torch.arange(groups, device=inside.device)[:, None] * size).view(-1)
