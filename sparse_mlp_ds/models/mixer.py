"""The block of MLP-Mixer (Tolstikhin et al., 2021), which mixes patches, then channels."""

from torch import Tensor, nn

from sparse_mlp_ds.models.layers import LN_EPS, NO_FACTORS, DropPath, Factors, Mlp
from sparse_mlp_ds.moe.stats import Reports


class MixerBlock(nn.Module):
    """y1 = x + t(MLP_S(t(norm x))); y = y1 + MLP_C(norm y1), where t swaps patch and channel axis (Sparse-MLP 2.2)."""

    def __init__(
        self, tokens: int, width: int, token_hidden: int, channel_hidden: int, dropout: float, drop_path: float
    ):
        """Build the block.

        Args:
            tokens: patches S.
            width: channels C.
            token_hidden: hidden width of the MLP that mixes patches.
            channel_hidden: hidden width of the MLP that mixes channels.
            dropout: rate inside both MLPs.
            drop_path: rate of stochastic depth.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp_tokens = Mlp(tokens, token_hidden, dropout)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp_channels = Mlp(width, channel_hidden, dropout)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None, factors: Factors = NO_FACTORS) -> tuple[Tensor, Reports]:
        """Return y [B, S, C] of x [B, S, C], and no reports.

        keys: [B] in training, None in evaluation. factors: those of its `DropPath`s, if they were drawn.
        """
        x = x + self.drop_path1(self.mlp_tokens.mix_tokens(self.norm1(x), keys), keys, factors[0])
        x = x + self.drop_path2(self.mlp_channels(self.norm2(x), keys), keys, factors[1])
        return x, {}
