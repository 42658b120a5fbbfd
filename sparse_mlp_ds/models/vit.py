"""ViT (Dosovitskiy et al., 2021) as MoCo v3 trains it, V-MoE (Riquelme et al., 2021) and WideNet (Xue et al., 2022).

They differ in what mixes channels: an MLP in every block, experts in some blocks, one set of experts for all blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import LN_EPS, DropPath, Mlp, lecun_normal, xavier_uniform
from sparse_mlp_ds.moe.stats import Reports


class TransformerBlock(nn.Module):
    """y1 = x + attention(norm x); y = y1 + channels(norm y1), `channels` an MLP or an MoE layer.

    Either layer may be shared with other blocks, as in WideNet: draws are told apart by the block's number.
    """

    def __init__(self, number: int, width: int, attention: nn.Module, channels: nn.Module, drop_path: float):
        super().__init__()
        self.number = number
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        dense = isinstance(channels, Mlp)
        self.mlp = channels if dense else None
        self.moe_c = None if dense else channels
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        """x: [B, S, C] -> the same shape, and the report of the MoE layer if there is one."""
        keys = None if keys is None else rng.fold(keys, self.number)
        reports: Reports = {}
        x = x + self.drop_path1(self.attention(self.norm1(x)), keys)
        y = self.norm2(x)
        if self.moe_c is None:
            y = self.mlp(y, keys)
        else:
            y, reports["moe_c"] = self.moe_c(y, keys)
        return x + self.drop_path2(y, keys), reports


class VisionTransformer(Backbone):
    """`TransformerBlock`s over patches with fixed positions, and a class token or the mean as the image's features."""

    def __init__(
        self,
        side: int,
        patch_size: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        class_token: bool = True,
        checkpoint_blocks: bool = False,
    ):
        """side: patches along one side of the image. class_token: without it, features are the mean over patches."""
        super().__init__(patch_size, width, blocks, classes, checkpoint_blocks)
        # A vector, so that it does not decay.
        self.class_token = nn.Parameter(torch.zeros(width)) if class_token else None
        self.register_buffer("positions", sin_cos_positions(side, width), persistent=False)

    def embed(self, images: Tensor) -> Tensor:
        """Return patches with positions, behind the class token if there is one: [B, 3, H, W] -> [B, S (+ 1), C]."""
        x = super().embed(images)
        x = x + self.positions.to(x.dtype)
        if self.class_token is None:
            return x
        return torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)

    def pool(self, x: Tensor) -> Tensor:
        """Return the class token, or the mean: [B, S, C] -> [B, C]."""
        return super().pool(x) if self.class_token is None else x[:, 0]

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Xavier-uniform, the class token near zero (MoCo v3's reference code); routers LeCun-normal (V-MoE's)."""
        if name.endswith("class_token"):
            nn.init.normal_(parameter, std=1e-6, generator=generator)
        elif name.endswith("router.weight"):
            lecun_normal(name, parameter, generator)
        else:
            xavier_uniform(name, parameter, generator)


def sin_cos_positions(side: int, width: int) -> Tensor:
    """Return [S, C]: sines and cosines of the column, then of the row, at C / 4 frequencies 1 .. 1/10000 (MoCo v3)."""
    frequencies = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # [side, C / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, C / 2]
    column, row = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)  # patches are numbered row by row
    return torch.cat([column, row], dim=1)
