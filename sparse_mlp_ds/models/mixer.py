"""The block of MLP-Mixer (Tolstikhin et al., 2021): mixes tokens, then channels."""

from torch import Tensor, nn

from sparse_mlp_ds.models.layers import LN_EPS, DropPath, Mlp
from sparse_mlp_ds.moe.stats import Reports


class MixerBlock(nn.Module):
    """y1 = x + t(MLP_S(t(norm x))); y = y1 + MLP_C(norm y1), t swaps the patch and channel axes (Sparse-MLP 2.2)."""

    def __init__(
        self, tokens: int, width: int, token_hidden: int, channel_hidden: int, dropout: float, drop_path: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp_tokens = Mlp(tokens, token_hidden, dropout)
        self.norm2 = nn.LayerNorm(width, eps=LN_EPS)
        self.mlp_channels = Mlp(width, channel_hidden, dropout)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        """x: [B, S, C] -> the same shape."""
        x = x + self.drop_path1(self.mlp_tokens(self.norm1(x).transpose(1, 2), keys).transpose(1, 2), keys)
        x = x + self.drop_path2(self.mlp_channels(self.norm2(x), keys), keys)
        return x, {}
