"""ResMLP (Touvron et al., arXiv 2105.03404): a linear layer mixes patches, an MLP channels, and norms are affine."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.layers import (
    NO_FACTORS,
    Affine,
    DropPath,
    Factors,
    LayerScale,
    Linear,
    Mlp,
    lecun_normal,
)
from sparse_mlp_ds.moe.stats import Reports


class ResMlpBlock(nn.Module):
    """y1 = x + scale(t(A t(affine x))); y = y1 + scale(MLP(affine y1)), where t swaps patch and channel axis (eq. 2-3).

    A is one linear layer over patches, with bias; the scales are LayerScales.
    """

    def __init__(
        self, tokens: int, width: int, channel_hidden: int, layer_scale: float, dropout: float, drop_path: float
    ):
        """Build the block.

        Args:
            tokens: patches S.
            width: channels C.
            channel_hidden: hidden width of the MLP.
            layer_scale: what both LayerScales start with.
            dropout: rate inside the MLP.
            drop_path: rate of stochastic depth.
        """
        super().__init__()
        self.norm1 = Affine(width)
        self.tokens = Linear(tokens, tokens)
        self.scale1 = LayerScale(width, layer_scale)
        self.norm2 = Affine(width)
        self.mlp_channels = Mlp(width, channel_hidden, dropout)
        self.scale2 = LayerScale(width, layer_scale)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None, factors: Factors = NO_FACTORS) -> tuple[Tensor, Reports]:
        """Return y [B, S, C] of x [B, S, C], and no reports.

        keys: [B] in training, None in evaluation. factors: those of its `DropPath`s, if they were drawn.
        """
        y = self.tokens(self.norm1(x), over_patches=True)
        x = x + self.drop_path1(self.scale1(y), keys, factors[0])
        y = self.mlp_channels(self.norm2(x), keys)
        return x + self.drop_path2(self.scale2(y), keys, factors[1]), {}

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill matrices from N(0, 0.02^2) (the authors' code), biases and affine layers as everywhere."""
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        else:
            lecun_normal(name, parameter, generator)
