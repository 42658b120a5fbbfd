"""The frame of every model here: isotropic blocks over patches, whatever they are, and what surrounds them."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_mlp_ds.models.layers import LN_EPS, PatchEmbed
from sparse_mlp_ds.moe.stats import Reports


class Backbone(nn.Module):
    """Patch projection, blocks, LayerNorm, mean over patches, linear head (MLP-Mixer, figure 1).

    MLP-Mixer with `MixerBlock`s, Sparse-MLP when the last ones are `SparseBlock`s, gMLP with `GmlpBlock`s;
    `vit.VisionTransformer` adds what attention needs.
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        checkpoint_blocks: bool = False,
    ):
        """classes: outputs of the head; 0 builds none.

        checkpoint_blocks: keep each block's input alone and compute the block again in the backward pass.
        """
        super().__init__()
        self.width = width
        self.checkpoint_blocks = checkpoint_blocks
        self.patch_embed = PatchEmbed(patch_size, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=LN_EPS)
        self.reset_head(classes)

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one of zeros (MLP-Mixer's initialisation), or by none."""
        self.head = nn.Linear(self.width, classes) if classes else nn.Identity()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def embed(self, images: Tensor) -> Tensor:
        """Return what the first block gets: [B, 3, H, W] -> [B, S, C]."""
        return self.patch_embed(images)

    def pool(self, x: Tensor) -> Tensor:
        """Return features [B, C] of normalised tokens [B, S, C]."""
        return x.mean(dim=1)

    def forward_features(self, images: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return pooled features [B, C] and the MoE layers' reports.

        images: [B, 3, H, W], normalised. keys: [B] sample keys in training, None for a deterministic pass.
        """
        x, reports = self.embed(images), {}
        for index, block in enumerate(self.blocks):
            x, block_reports = self._run(block, x, keys)
            reports |= {f"{index}.{name}": report for name, report in block_reports.items()}
        return self.pool(self.norm(x)), reports

    def forward_head(self, features: Tensor) -> Tensor:
        """Return logits [B, classes] from features [B, C]."""
        return self.head(features)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, classes] and the MoE layers' reports."""
        features, reports = self.forward_features(images, keys)
        return self.forward_head(features), reports

    def _run(self, block: nn.Module, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Reports]:
        if not self.checkpoint_blocks:
            return block(x, keys)
        # Every draw is keyed by sample, so the second run repeats the first without any generator's state. What it
        # reports is dropped, and its graph is that of the reports returned here.
        return checkpoint(block, x, keys, use_reentrant=False, preserve_rng_state=False)
