"""The sparse block of Sparse-MLP (Lou et al., arXiv 2109.02008, 2.2 and figure 1)."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.layers import LN_EPS, NO_FACTORS, DropPath, Factors, Linear, Mlp
from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.stats import Reports

MakeMoE = Callable[[str, int, MoESpec, float], nn.Module]
"""A function (mixing type `moe_s` or `moe_c`, item length, experts, dropout inside them) that builds an MoE layer."""


class Rerepresent(nn.Module):
    """Change the shape of the representation: [B, S, C] -> [B, S_out, C_out] (Sparse-MLP, Algorithm 1).

    On each axis, a LayerNorm is followed by a projection with GELU. The patch axis is projected first on the way into a
    sparse block, and last on the way out. No skip connection leads around this layer.
    """

    def __init__(self, tokens: tuple[int, int], width: tuple[int, int], tokens_first: bool):
        """Build the projections.

        Args:
            tokens: (S, S_out).
            width: (C, C_out).
            tokens_first: whether the patch axis is projected before the channel axis.
        """
        super().__init__()
        self.tokens_first = tokens_first
        self.norm1 = nn.LayerNorm(width[0], eps=LN_EPS)
        self.norm2 = nn.LayerNorm(width[0] if tokens_first else width[1], eps=LN_EPS)
        self.tokens = Linear(*tokens)
        self.channels = nn.Linear(*width)

    def forward(self, x: Tensor) -> Tensor:
        """Project both axes of x [B, S, C]; return [B, S_out, C_out]."""
        first, second = (self._tokens, self._channels) if self.tokens_first else (self._channels, self._tokens)
        return second(self.norm2(first(self.norm1(x))))

    def _tokens(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.tokens(x, over_patches=True))

    def _channels(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.channels(x))


class SparseBlock(nn.Module):
    """z = R1(x); u = z + t(MoE_S(t(norm z))); v = u + MoE_C(norm u); y = R2(v). No equation of it was published.

    R1 and R2 are re-represent layers, and t swaps the patch and channel axes. The items of MoE_S are channels, whose
    patches it mixes, or chunks of channels; those of MoE_C are patches, whose channels it mixes. Both skip connections
    lie between R1 and R2, so everything passes through the re-represent layers (figure 1 of the paper). The figure
    draws the second skip from behind its norm, v = norm u + MoE_C(norm u), which `skip_after_norm` computes; the first
    one, and both of dense blocks (eq. 3), start before their norms. With `rerepresent_skip`, y = x + R2(v), which the
    paper does not have: small models lose accuracy without it (docs/results.md).
    """

    def __init__(
        self,
        tokens: tuple[int, int],
        width: tuple[int, int],
        moe_s: MoESpec,
        moe_c: MoESpec,
        make_moe: MakeMoE,
        dropout: float,
        drop_path: float,
        rerepresent: bool = True,
        skip_after_norm: bool = False,
        rerepresent_skip: bool = False,
    ):
        """Build the block.

        Args:
            tokens: (S, S1).
            width: (C, C1).
            moe_s: the experts that mix patches.
            moe_c: the experts that mix channels.
            make_moe: builds an MoE layer, on one process or spread over ranks.
            dropout: rate inside MLPs, and inside experts whose spec has no rate.
            drop_path: rate of stochastic depth.
            rerepresent: whether there are re-represent layers; without them, S1 = S and C1 = C.
            skip_after_norm: whether the second skip starts behind its norm.
            rerepresent_skip: whether a third skip leads around re-represent layers and all, y = x + R2(v).
        """
        super().__init__()
        self.skip_after_norm = skip_after_norm
        self.skip_around = rerepresent_skip and rerepresent
        self.chunk = moe_s.chunk
        self.rerepresent1 = Rerepresent(tokens, width, tokens_first=True) if rerepresent else nn.Identity()
        self.norm1 = nn.LayerNorm(width[1], eps=LN_EPS)
        self.moe_s = mixing("moe_s", tokens[1], moe_s, make_moe, dropout)
        self.norm2 = nn.LayerNorm(width[1], eps=LN_EPS)
        self.moe_c = mixing("moe_c", width[1], moe_c, make_moe, dropout)
        self.rerepresent2 = Rerepresent(tokens[::-1], width[::-1], tokens_first=False) if rerepresent else nn.Identity()
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None, factors: Factors = NO_FACTORS) -> tuple[Tensor, Reports]:
        """Return y [B, S, C] of x [B, S, C], and the MoE layers' reports.

        keys: [B] in training, None in evaluation. factors: those of its `DropPath`s, if they were drawn.
        """
        reports: Reports = {}
        whole = x
        x = self.rerepresent1(x)  # [B, S1, C1]
        channels = self.norm1(x).transpose(1, 2)  # [B, C1, S1]
        items = channels if self.chunk == 1 else channels.unflatten(1, (-1, self.chunk)).flatten(2)
        y = self._mix("moe_s", items, keys, reports).reshape(channels.shape).transpose(1, 2)
        x = x + self.drop_path1(y, keys, factors[0])
        y = self.norm2(x)
        x = (y if self.skip_after_norm else x) + self.drop_path2(self._mix("moe_c", y, keys, reports), keys, factors[1])
        x = self.rerepresent2(x)
        return whole + x if self.skip_around else x, reports

    def _mix(self, name: str, x: Tensor, keys: Tensor | None, reports: Reports) -> Tensor:
        layer = getattr(self, name)
        if isinstance(layer, Mlp):
            return layer(x, keys)
        y, reports[name] = layer(x, keys)
        return y


class ChunkMlp(Mlp):
    """An expert whose items are chunks of c channels of length T: [*, c T] -> [*, c T], one MLP for all c channels.

    Arrays of rows, and keys, are those of the chunks, as the MoE layer hands them out; see `Mlp`.
    """

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Apply the MLP to each channel of x [B, c T]; keys: [B] in training, None in evaluation."""
        return super().forward(x.unflatten(-1, (-1, self.fc1.in_features)), keys).flatten(-2)

    @staticmethod
    def together(experts: Sequence[Mlp], rows: Tensor, segments: grouped.Segments) -> Tensor:
        """Apply several experts each to its rows: [R, c T] -> [R, c T], see `Mlp.together`."""
        channels = rows.unflatten(-1, (-1, experts[0].fc1.in_features))  # [R, c, T]
        mixed = Mlp.together(experts, channels.flatten(0, 1), segments.repeated(channels.shape[1]))
        return mixed.view_as(channels).flatten(1)

    @staticmethod
    def in_turn(
        experts: Sequence[Mlp], rows: Tensor, sizes: Sequence[int] | Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Apply several experts one after another: [R, c T] -> [R, c T], see `Mlp.in_turn`."""
        channels = rows.unflatten(-1, (-1, experts[0].fc1.in_features))
        count = channels.shape[1]
        repeated = sizes * count if isinstance(sizes, Tensor) else [size * count for size in sizes]
        return Mlp.in_turn(experts, channels.flatten(0, 1), repeated, keys).view_as(channels).flatten(1)


def make_expert(dim: int, spec: MoESpec, dropout: float, hidden: int | None = None) -> Mlp:
    """Build one expert of an MoE layer.

    Args:
        dim: length of its items.
        spec: the experts.
        dropout: rate inside it.
        hidden: its hidden width, if it is another one than that of `spec`.
    """
    return (ChunkMlp if spec.chunk > 1 else Mlp)(dim // spec.chunk, hidden or spec.hidden, dropout)


def mixing(kind: str, dim: int, spec: MoESpec, make_moe: MakeMoE, dropout: float) -> nn.Module:
    """Build an MoE layer, or for 0 experts the one dense MLP in its place.

    Args:
        kind: mixing type, `moe_s` or `moe_c`.
        dim: length of what an expert mixes: tokens of a channel or channels of a token.
        spec: the experts.
        make_moe: builds an MoE layer.
        dropout: the model's rate, which applies where `spec` has no rate.
    """
    dropout = dropout if spec.dropout is None else spec.dropout
    if not spec.experts:
        return Mlp(dim, spec.hidden, dropout)
    layer = make_moe(kind, dim * spec.chunk, spec, dropout)
    if spec.shared:
        layer.shared = make_expert(dim * spec.chunk, spec, dropout, spec.shared)
    return layer
