"""The noisy top-k gate: G(x) = TopK(softmax(W x + noise)), noise ~ N(0, 1/E^2) on the logits (Sparse-MLP, eq. 2-3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe.routes import Choices


class Router(nn.Module):
    """A bias-free linear gate, in float32 under every precision, because ties in bf16 choose other experts."""

    def __init__(self, dim: int, experts: int, top_k: int, noise: float = 1.0):
        """`noise` scales the paper's standard deviation 1/E; 0 switches it off."""
        super().__init__()
        self.top_k = top_k
        self.noise = noise
        self.weight = nn.Parameter(torch.empty(experts, dim))
        self.stream = 0  # set by models.registry.build from the layer's name

    def forward(self, x: Tensor, keys: Tensor | None) -> Choices:
        """Choose `top_k` experts for each item.

        x: [B, T, D]; keys: [B] sample keys in training, None where routing must be deterministic (evaluation and the
        momentum encoder).
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # [B, T, E]
        noisy = logits
        if keys is not None and self.noise > 0:
            _, items, experts = logits.shape
            draws = rng.normal(keys, self.stream, items * experts).view_as(logits)
            noisy = logits + draws * (self.noise / experts)
        probabilities = noisy.softmax(dim=-1)
        weight, expert = probabilities.flatten(0, 1).topk(self.top_k, dim=-1)  # [N, K]
        return Choices(expert, weight, logits.flatten(0, 1), noisy.flatten(0, 1))
