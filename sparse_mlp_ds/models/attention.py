"""Multi-head self-attention (Vaswani et al., 2017)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sparse_mlp_ds.models.layers import xavier_uniform


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(head size)) V over patches, then a projection of all heads: [B, S, C] -> [B, S, C_out]."""

    attend = staticmethod(scaled_dot_product_attention)
    """The function (query, key, value) -> values, all [B, heads, S, head size]."""

    def __init__(self, width: int, heads: int, head_size: int, out: int):
        """Build the projections.

        Args:
            width: channels C of the input.
            heads: number of attention heads.
            head_size: channels of each head.
            out: channels C_out of the output.
        """
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_size)
        self.proj = nn.Linear(heads * head_size, out)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all patches of the same image."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, S, 3, heads, head size]
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = self.attend(query, key, value)  # [B, heads, S, head size]
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill with Xavier-uniform, the query's, key's and value's matrix each by itself (MoCo v3's reference code)."""
        for matrix in parameter.chunk(3) if name.endswith("qkv.weight") else (parameter,):
            xavier_uniform(name, matrix, generator)
