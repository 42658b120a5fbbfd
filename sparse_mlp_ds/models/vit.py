"""ViT (Dosovitskiy et al., 2021) as MoCo v3 trains it, V-MoE (Riquelme et al., 2021) and WideNet (Xue et al., 2022).

They differ in what mixes channels: an MLP in every block (ViT), experts in some blocks (V-MoE), or one set of experts
for all blocks (WideNet).
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import (
    LN_EPS,
    NO_FACTORS,
    DropPath,
    Factors,
    Mlp,
    PatchEmbed,
    lecun_normal,
    xavier_uniform,
)
from sparse_mlp_ds.models.positions import sin_cos
from sparse_mlp_ds.moe.stats import Reports


class TransformerBlock(nn.Module):
    """y1 = x + attention(norm x); y = y1 + channels(norm y1), where `channels` is an MLP or an MoE layer.

    Blocks may share both layers, as in WideNet. Their random draws still differ, because each block gets keys of its
    own.
    """

    def __init__(self, width: int, attention: nn.Module, channels: nn.Module, drop_path: float):
        """Build the block around its two layers.

        Args:
            width: channels C.
            attention: module [B, S, C] -> [B, S, C].
            channels: an `Mlp` or an MoE layer.
            drop_path: rate of stochastic depth.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        dense = isinstance(channels, Mlp)
        self.mlp = channels if dense else None
        self.moe_c = None if dense else channels
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None, factors: Factors = NO_FACTORS) -> tuple[Tensor, Reports]:
        """Return y [B, S, C] of x [B, S, C], and the report of the MoE layer if there is one.

        keys: [B] in training, None in evaluation. factors: those of its `DropPath`s, if they were drawn.
        """
        x = x + self.drop_path1(self.attention(self.norm1(x)), keys, factors[0])
        y, reports = self._mix_channels(self.norm2(x), keys)
        return x + self.drop_path2(y, keys, factors[1]), reports

    def _mix_channels(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        if self.mlp is not None:
            return self.mlp(x, keys), {}
        assert self.moe_c is not None
        y, report = self.moe_c(x, keys)
        return y, {"moe_c": report}


class VisionTransformer(Backbone):
    """`TransformerBlock`s over patches with positions.

    An image's features are the output of a class token, or the mean over patches.
    """

    positions: Tensor
    """[T + S, C], added to the T tokens before the patches and to the patches; fixed ones leave tokens as they are."""
    head_representation: nn.Module | None
    """The head's first layer, behind which follows tanh, if it has one."""

    def __init__(
        self,
        side: int,
        patch_size: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        tokens: int = 1,
        checkpoint_blocks: bool = False,
        positions: str = "sin_cos",
        representation: bool = False,
    ):
        """Build the frame around the blocks.

        Args:
            side: patches along one side of the image.
            patch_size: side of a patch, in pixels.
            width: channels C.
            blocks: the `TransformerBlock`s.
            classes: outputs of the head; 0 builds no head.
            tokens: number of tokens T before the patches, the first a class token; with 0, features are the mean over
                patches.
            checkpoint_blocks: keep only each block's input, and compute the block again in the backward pass.
            positions: kind of positions, see `TransformerSpec.positions`.
            representation: whether the head begins with a linear layer and tanh.
        """
        super().__init__(PatchEmbed(patch_size, width), width, blocks, 0, checkpoint_blocks)
        self.representation = representation
        # A vector, because vectors do not decay.
        self.class_token = nn.Parameter(torch.zeros(width)) if tokens else None
        if positions == "learned":
            self.positions = nn.Parameter(torch.zeros(tokens + side**2, width))
        else:
            fixed = sin_cos(side, width, swapped=positions == "sin_cos_swapped")
            self.register_buffer("positions", nn.functional.pad(fixed, (0, 0, tokens, 0)), persistent=False)
        self.reset_head(classes)

    def reset_head(self, classes: int) -> None:
        """Replace the head by a new one, whose last layer is zero; for 0 classes, remove it."""
        super().reset_head(classes)
        self.head_representation = nn.Linear(self.width, self.width) if classes and self.representation else None

    def tokens(self) -> list[Tensor]:
        """Return the vectors [C] that stand before the patches."""
        return [] if self.class_token is None else [self.class_token]

    def embed(self, inputs: Tensor) -> Tensor:
        """Return tokens and patches with positions: [B, 3, H, W] -> [B, T + S, C]."""
        x = super().embed(inputs)
        if tokens := self.tokens():
            x = torch.cat([torch.stack(tokens).expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.positions.to(x.dtype)

    def pool(self, x: Tensor) -> Tensor:
        """Return the class token's output, or the mean over patches: [B, T + S, C] -> [B, C]."""
        return super().pool(x) if self.class_token is None else x[:, 0]

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits [B, classes] from features [B, C]."""
        if self.head_representation is not None:
            features = self.head_representation(features).tanh()
        return super().forward_head(features)

    def block_keys(self, keys: Tensor | None) -> Sequence[Tensor | None]:
        """Return each block's keys [B]: different ones, though blocks may share their layers."""
        if keys is None:
            return super().block_keys(keys)
        return rng.fold(keys, _numbers(tuple(range(len(self.blocks))), keys.device)).unbind(0)

    def path_keys(self, keys: Tensor) -> Tensor:
        """Return the keys [paths, B] that the blocks' `DropPath`s draw with: those of their blocks."""
        return rng.fold(keys, _numbers(tuple(number for number, *_ in self._paths), keys.device))

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill with Xavier-uniform, tokens near zero (MoCo v3's reference code), routers with LeCun-normal
        (V-MoE's), learned positions from a normal of deviation 0.02 (V-MoE's and DeiT's).
        """
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=1e-6, generator=generator)
        elif name.endswith("positions"):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif name.endswith("router.weight"):
            lecun_normal(name, parameter, generator)
        else:
            xavier_uniform(name, parameter, generator)


@lru_cache(maxsize=16)
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a column [N, 1] that is made once: bringing it to a GPU makes the host wait."""
    return torch.tensor(numbers, device=device)[:, None]
