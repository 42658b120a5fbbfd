"""The noisy top-k gate: G(x) = TopK(softmax(W x + noise)), noise ~ N(0, 1/E^2) on the logits (Sparse-MLP, eq. 2-3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe.routes import Choices


class Router(nn.Module):
    """A linear gate without bias.

    It computes in float32 under every precision: in bf16 logits would tie, and the tie would choose different experts.
    """

    stream: Tensor
    """Number of the stream of its random draws, a scalar int64."""

    def __init__(self, dim: int, experts: int, top_k: int, noise: float = 1.0):
        """Build the gate.

        Args:
            dim: item length D.
            experts: number of experts E.
            top_k: experts per item, K.
            noise: standard deviation of the noise, as a multiple of the paper's 1/E; 0 switches the noise off.
        """
        super().__init__()
        self.top_k = top_k
        self.noise = noise
        self.weight = nn.Parameter(torch.empty(experts, dim))
        # As a tensor, a stream is one more input of a compiled graph, which then serves all blocks.
        self.register_buffer("stream", torch.tensor(0), persistent=False)  # set by models.registry.build from its name

    def forward(self, x: Tensor, keys: Tensor | None) -> Choices:
        """Choose `top_k` experts for each item of x [B, T, D].

        keys: [B] random keys of the images in training, None where routing must be deterministic (in evaluation and in
        the momentum encoder).
        """
        # The meta device, on which memory is estimated, knows no autocast.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # [B, T, E]
        noisy = logits
        if keys is not None and self.noise > 0:
            _, items, experts = logits.shape
            draws = rng.normal(keys, self.stream, items * experts).view_as(logits)
            noisy = logits + draws * (self.noise / experts)
        probabilities = noisy.softmax(dim=-1)
        weight, expert = probabilities.flatten(0, 1).topk(self.top_k, dim=-1)  # [N, K]
        return Choices(expert, weight, logits.flatten(0, 1), noisy.flatten(0, 1))
