"""The sparse block of Sparse-MLP (Lou et al., arXiv 2109.02008, 2.2 and figure 1)."""

from collections.abc import Callable

from torch import Tensor, nn

from sparse_mlp_ds.models.layers import LN_EPS, DropPath, Mlp
from sparse_mlp_ds.models.spec import MoESpec
from sparse_mlp_ds.moe.stats import Reports

MakeMoE = Callable[[str, int, MoESpec, float], nn.Module]
"""(mixing type, item length, experts, dropout inside them) -> an MoE layer: `moe_s` or `moe_c`."""


class Rerepresent(nn.Module):
    """Change the shape of the representation: [B, S, C] -> [B, S_out, C_out] (Sparse-MLP, Algorithm 1).

    LayerNorm and a projection with GELU on each axis. On the way into a sparse block the patch axis is projected first,
    on the way out last; the skip connections of the block neither start before nor end behind it.
    """

    def __init__(self, tokens: tuple[int, int], width: tuple[int, int], tokens_first: bool):
        """tokens: (S, S_out). width: (C, C_out)."""
        super().__init__()
        self.tokens_first = tokens_first
        self.norm1 = nn.LayerNorm(width[0], eps=LN_EPS)
        self.norm2 = nn.LayerNorm(width[0] if tokens_first else width[1], eps=LN_EPS)
        self.tokens = nn.Linear(*tokens)
        self.channels = nn.Linear(*width)

    def forward(self, x: Tensor) -> Tensor:
        """Project both axes."""
        first, second = (self._tokens, self._channels) if self.tokens_first else (self._channels, self._tokens)
        return second(self.norm2(first(self.norm1(x))))

    def _tokens(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.tokens(x.transpose(1, 2))).transpose(1, 2)

    def _channels(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.channels(x))


class SparseBlock(nn.Module):
    """z = R1(x); u = z + t(MoE_S(t(norm z))); v = u + MoE_C(norm u); y = R2(v).

    MoE_S is routed channels and mixes tokens, MoE_C is routed patches and mixes channels. The skips start after R1 and
    end before R2, so the re-represent layers are a bottleneck of the main path (figure 1 of the paper).
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
    ):
        """tokens: (S, S1). width: (C, C1). make_moe: builds an MoE layer, on one process or spread over ranks.

        rerepresent: without it there are no re-represent layers, S1 = S and C1 = C.
        """
        super().__init__()
        self.rerepresent1 = Rerepresent(tokens, width, tokens_first=True) if rerepresent else nn.Identity()
        self.norm1 = nn.LayerNorm(width[1], eps=LN_EPS)
        self.moe_s = mixing("moe_s", tokens[1], moe_s, make_moe, dropout)
        self.norm2 = nn.LayerNorm(width[1], eps=LN_EPS)
        self.moe_c = mixing("moe_c", width[1], moe_c, make_moe, dropout)
        self.rerepresent2 = Rerepresent(tokens[::-1], width[::-1], tokens_first=False) if rerepresent else nn.Identity()
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        """x: [B, S, C] -> the same shape, and the reports of the block's MoE layers."""
        reports: Reports = {}
        x = self.rerepresent1(x)  # [B, S1, C1]
        y = self._mix("moe_s", self.norm1(x).transpose(1, 2), keys, reports).transpose(1, 2)
        x = x + self.drop_path1(y, keys)
        x = x + self.drop_path2(self._mix("moe_c", self.norm2(x), keys, reports), keys)
        return self.rerepresent2(x), reports

    def _mix(self, name: str, x: Tensor, keys: Tensor | None, reports: Reports) -> Tensor:
        layer = getattr(self, name)
        if isinstance(layer, Mlp):
            return layer(x, keys)
        y, reports[name] = layer(x, keys)
        return y


def mixing(kind: str, dim: int, spec: MoESpec, make_moe: MakeMoE, dropout: float) -> nn.Module:
    """Build an MoE layer, or the one dense MLP that 0 experts mean. dropout: the model's, unless `spec` has its own."""
    dropout = dropout if spec.dropout is None else spec.dropout
    return make_moe(kind, dim, spec, dropout) if spec.experts else Mlp(dim, spec.hidden, dropout)
