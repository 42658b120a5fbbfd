"""The MoE layer without dispatch: every expert runs on every item, and the gate weighs what they return.

Nothing is sorted, and no shape or branch depends on values, so the layer is a plain graph that can be exported. The
sums are those of `layer.MoELayer` in evaluation, in the same order. It takes E / K times as many products.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparse_mlp_ds.moe.capacity import slots
from sparse_mlp_ds.moe.routes import Choices


def mix(items: Tensor, experts: Iterable[nn.Module], gate: Tensor) -> Tensor:
    """Return the sum over experts of G(x)_e E_e(x): [N, D] -> [N, D].

    Args:
        items: [N, D].
        experts: the E experts, in the order of their numbers.
        gate: [N, E], each expert's weight for each item. Where it is 0, the expert's result does not count, not even
            if it is NaN.
    """
    mixed = torch.zeros_like(items)
    for expert, weight in zip(experts, gate.unbind(dim=1), strict=True):
        column = weight[:, None]
        mixed = mixed + torch.where(column > 0, expert(items) * column, 0.0).to(items.dtype)
    return mixed


def items_choose(choices: Choices, items: int, factor: float | None, by_weight: bool, multiple: int = 1) -> Tensor:
    """Return each expert's weight for each item: [N, E] float32, 0 where it does not get the item.

    Args:
        choices: the router's choices for N items.
        items: number of items of one image T; slots are counted in each image.
        factor: capacity factor, see `capacity.place`; None drops nothing.
        by_weight: whether items of larger first weight get their slots first; else they get them in array order.
        multiple: slots are rounded up to a multiple of it.
    """
    weight = choices.weight
    if factor is not None:
        capacity = slots(factor, choices.expert.shape[1] * items, choices.logits.shape[1], multiple)
        weight = torch.where(_positions(choices, items, by_weight) < capacity, weight, 0.0)
    return torch.zeros_like(choices.logits).scatter(1, choices.expert, weight)


def experts_choose(choices: Choices, items: int, factor: float, multiple: int = 1) -> Tensor:
    """Return the same where each expert takes the best items of each image; see `expert_choice.choose`."""
    capacity = min(slots(factor, choices.expert.shape[1] * items, choices.logits.shape[1], multiple), items)
    by_image = choices.probabilities.unflatten(0, (-1, items))  # [B, T, E]
    weight, item = by_image.topk(capacity, dim=1)  # [B, C, E]
    return torch.zeros_like(by_image).scatter(1, item, weight).flatten(0, 1)


def _positions(choices: Choices, items: int, by_weight: bool) -> Tensor:
    """Return [N, K] float32, how many choices of the same image get a slot of the same expert earlier.

    These are the positions by which `capacity.place` fills slots, counted by comparing all pairs of an image's items.
    """
    order = torch.arange(items, device=choices.weight.device)
    earlier = order[:, None] > order[None, :]  # [T, T]: whether the item of the column comes before that of the row
    if by_weight:
        score = choices.weight[:, 0].unflatten(0, (-1, items))  # [B, T]
        row, column = score[:, :, None], score[:, None, :]
        earlier = (column > row) | ((column == row) & earlier)  # [B, T, T]
    experts = torch.arange(choices.logits.shape[1], device=order.device)
    asks = (choices.expert[:, :, None] == experts).float().unflatten(0, (-1, items))  # [B, T, K, E]
    counted = torch.zeros_like(asks[:, :1, 0])  # [B, 1, E], choices of lower number
    positions = []
    for number in range(choices.expert.shape[1]):
        mine = asks[:, :, number]  # [B, T, E]
        before = earlier.float() @ mine + counted
        positions.append((before * mine).sum(dim=2))
        counted = counted + mine.sum(dim=1, keepdim=True)
    return torch.stack(positions, dim=2).flatten(0, 1)
