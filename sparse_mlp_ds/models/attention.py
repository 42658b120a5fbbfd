"""Multi-head self-attention (Vaswani et al., 2017)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sparse_mlp_ds.models.layers import xavier_uniform


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(head size)) V over patches, heads joined by a projection: [B, S, C] -> [B, S, C_out]."""

    def __init__(self, width: int, heads: int, head_size: int, out: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_size)
        self.proj = nn.Linear(heads * head_size, out)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all patches of the same image."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, S, 3, heads, head size]
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)  # [B, heads, S, head size]
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Xavier-uniform, query, key and value each as a matrix of its own (MoCo v3's reference code)."""
        for matrix in parameter.chunk(3) if name.endswith("qkv.weight") else (parameter,):
            xavier_uniform(name, matrix, generator)
