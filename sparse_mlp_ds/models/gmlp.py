"""gMLP and aMLP (Liu et al., arXiv 2105.08050): one gated MLP per block, without and with tiny attention.

For images the matrix that mixes tokens is free, for text it is a Toeplitz matrix.
"""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.attention import Attention
from sparse_mlp_ds.models.layers import (
    LN_EPS,
    NO_FACTORS,
    Dropout,
    DropPath,
    Factors,
    Mlp,
    along_tokens,
    lecun_normal,
)
from sparse_mlp_ds.moe.stats import Reports


class SpatialProjection(nn.Linear):
    """The linear layer f(v) = W v + b along the token axis: [B, S, D] -> [B, S, D] (gMLP 2.1)."""

    def __init__(self, tokens: int):
        super().__init__(tokens, tokens)

    def forward(self, v: Tensor) -> Tensor:
        """Mix the tokens, with the same weights in every channel."""
        return along_tokens(self, v)


class ToeplitzProjection(nn.Module):
    """The same with W[i, j] = w[i - j + S - 1]: what a token gets of another depends on their distance (gMLP 4)."""

    def __init__(self, tokens: int):
        super().__init__()
        self.tokens = tokens
        # A matrix of one row, not a vector: like the matrix that it stands for, it decays.
        self.weight = nn.Parameter(torch.empty(1, 2 * tokens - 1))
        self.bias = nn.Parameter(torch.empty(tokens))

    def matrix(self) -> Tensor:
        """Return W [S, S], in float32 at least, so that the gradient of a weight is a sum in float32."""
        weight = self.weight[0].to(torch.promote_types(self.weight.dtype, torch.float32))
        # Windows of w, each turned round. Unlike that of indexing, the gradient adds up in the same order every time.
        return weight.unfold(0, self.tokens, 1).flip(1)

    def forward(self, v: Tensor) -> Tensor:
        """Mix the tokens of v [B, S, D], with the same weights in every channel."""
        matrix = self.matrix().to(self.weight.dtype)
        return torch.baddbmm(self.bias[None, :, None], matrix.expand(v.shape[0], -1, -1), v)


class SpatialGatingUnit(nn.Module):
    """The gate s(z) = z1 * f(norm z2), for the halves z1 and z2 of z's channels: [B, S, F] -> [B, S, F / 2] (gMLP 2.1).

    The variants that the paper compares it with halve nothing: z * f(norm z), z + f(norm z), f(norm z).
    """

    def __init__(self, tokens: int, hidden: int, kind: str = "split", toeplitz: bool = False):
        """Build the gate.

        Args:
            tokens: number of tokens S.
            hidden: channels F of z.
            kind: `split`, or one of the variants: `multiplicative`, `additive`, `linear`.
            toeplitz: whether what mixes the tokens is a Toeplitz matrix.
        """
        super().__init__()
        self.kind = kind
        self.width = hidden // 2 if kind == "split" else hidden
        self.norm = nn.LayerNorm(self.width, eps=LN_EPS)
        self.spatial = (ToeplitzProjection if toeplitz else SpatialProjection)(tokens)

    def forward(self, z: Tensor, attended: Tensor | None = None) -> Tensor:
        """Gate z [B, S, F]; return [B, S, F / 2], or [B, S, F] if nothing is halved.

        attended: the tiny attention's output, of the result's shape, which is added to f before the product.
        """
        z1, z2 = z.chunk(2, dim=-1) if self.kind == "split" else (z, z)
        gate = self.spatial(self.norm(z2))
        gate = gate if attended is None else gate + attended
        if self.kind == "linear":
            return gate
        return z1 + gate if self.kind == "additive" else z1 * gate

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill W near 0 and b with 1, so that the gate starts open and the block as a plain MLP (gMLP 2.1).

        The paper gives no deviation; 1e-6 is timm's. It does not say how its variants start either: here the sum and
        the linear one have b = 0. A linear gate lets nothing through at first, but learns to; with W of the size that
        keeps the variance, a language model remained at the perplexity of token frequencies (docs/results.md).
        """
        if name.split(".")[-2] != "spatial":
            lecun_normal(name, parameter, generator)
        elif name.endswith("bias"):
            parameter.fill_(1.0 if self.kind in ("split", "multiplicative") else 0.0)
        else:
            nn.init.normal_(parameter, std=1e-6, generator=generator)


class GmlpBlock(nn.Module):
    """y = x + W2 s(gelu(W1 norm x)), with the spatial gating unit s (gMLP 2).

    In an aMLP, the gate also gets the output of a tiny attention over norm x (4.3). A block may have one more layer,
    y + MoE_C(norm y), whose experts give it parameters that no token meets all of.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        hidden: int,
        attention: int,
        dropout: float,
        drop_path: float,
        gate: str = "split",
        toeplitz: bool = False,
        channels: nn.Module | None = None,
    ):
        """Build the block.

        Args:
            tokens: number of tokens S.
            width: channels C.
            hidden: channels F behind the first projection.
            attention: size of the tiny attention's one head; 0 builds no attention.
            dropout: rate after GELU and at the end.
            drop_path: rate of stochastic depth.
            gate: kind of the gate, see `SpatialGatingUnit`.
            toeplitz: whether what mixes the tokens is a Toeplitz matrix.
            channels: the layer behind, an MoE layer or the one MLP in the place of experts; None builds no such layer.
        """
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        unit = SpatialGatingUnit(tokens, hidden, gate, toeplitz)
        self.attention = Attention(width, 1, attention, unit.width) if attention else None
        self.fc1 = nn.Linear(width, hidden)
        self.dropout1 = Dropout(dropout)
        self.gate = unit
        self.fc2 = nn.Linear(unit.width, width)
        self.dropout2 = Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        self.moe_c = channels
        if channels is not None:
            self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
            self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None, factors: Factors = NO_FACTORS) -> tuple[Tensor, Reports]:
        """Return y [B, S, C] of x [B, S, C], and the report of the MoE layer if there is one.

        keys: [B] in training, None in evaluation. factors: those of its `DropPath`s, if they were drawn.
        """
        y = self.norm(x)
        attended = None if self.attention is None else self.attention(y)
        y = self.dropout1(nn.functional.gelu(self.fc1(y)), keys)
        y = self.dropout2(self.fc2(self.gate(y, attended)), keys)
        x = x + self.drop_path(y, keys, factors[0])
        if self.moe_c is None:
            return x, {}
        y, reports = mix_channels(self.moe_c, self.norm2(x), keys)
        return x + self.drop_path2(y, keys, factors[1]), reports


def mix_channels(layer: nn.Module, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
    """Return what a layer makes of x [B, S, C], and its report: that of an MoE layer, none of an MLP.

    keys: [B] in training, None in evaluation.
    """
    if isinstance(layer, Mlp):
        return layer(x, keys), {}
    y, report = layer(x, keys)
    return y, {"moe_c": report}
