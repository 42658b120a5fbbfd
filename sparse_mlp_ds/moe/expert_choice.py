"""Expert-choice routing (Zhou et al., 2022): each expert takes the items that weigh most for it.

Load is even by construction, and an item may be taken by any number of experts, or by none.
"""

import torch

from sparse_mlp_ds.moe.capacity import slots
from sparse_mlp_ds.moe.routes import Choices, Routes


def choose(choices: Choices, groups: int, capacity_factor: float, multiple: int = 1) -> Routes:
    """Return as routes what each expert takes: in every group, its ceil(capacity_factor K N / (G E)) best items.

    groups: number of routing groups G into which the N items fall, in order; 0 if there are no items. In evaluation
    each image is a group, so that what is taken from an image does not depend on its batch. multiple: the number of
    items is rounded up to a multiple of it, but never exceeds those of the group.
    """
    n, experts = choices.logits.shape
    size = n // max(groups, 1)
    capacity = min(slots(capacity_factor, choices.expert.shape[1] * size, experts, multiple), size)
    weight, item = choices.probabilities.view(groups, size, experts).topk(capacity, dim=1)  # [G, C, E]
    item = item + torch.arange(groups, device=item.device)[:, None, None] * size
    counts = torch.full((experts,), groups * capacity, device=item.device)
    by_expert = (2, 0, 1)  # [G, C, E] -> [E, G, C], the order of dispatch
    return Routes(item.permute(by_expert).flatten(), None, weight.permute(by_expert).flatten(), counts, counts)
