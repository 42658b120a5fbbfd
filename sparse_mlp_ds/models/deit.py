"""DeiT's distilled ViT (Touvron et al., arXiv 2012.12877): a second token, whose head learns from a teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.vit import VisionTransformer
from sparse_mlp_ds.moe.stats import Reports


class DistilledVisionTransformer(VisionTransformer):
    """A ViT with a class token and a distillation token; logits are the mean of both heads'.

    Features are the mean of both tokens' outputs, from which `forward_head`, the class token's head, does not give the
    logits.
    """

    head_dist: nn.Module
    """The distillation token's head."""

    def __init__(
        self,
        side: int,
        patch_size: int,
        width: int,
        blocks: Sequence[nn.Module],
        classes: int = 0,
        checkpoint_blocks: bool = False,
        positions: str = "learned",
    ):
        """Build the model. For the arguments, see `VisionTransformer`."""
        super().__init__(side, patch_size, width, blocks, 0, 2, checkpoint_blocks, positions)
        self.distillation_token = nn.Parameter(torch.zeros(self.width))
        self.reset_head(classes)

    def reset_head(self, classes: int) -> None:
        """Replace both heads by new ones of zeros; for 0 classes, remove them."""
        super().reset_head(classes)
        self.head_dist = nn.Linear(self.width, classes) if classes else nn.Identity()
        for parameter in self.head_dist.parameters():
            nn.init.zeros_(parameter)

    def tokens(self) -> list[Tensor]:
        """Return the class token and the distillation token [C]."""
        return [*super().tokens(), self.distillation_token]

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean of both tokens' outputs: [B, 2 + S, C] -> [B, C]."""
        return x[:, :2].mean(dim=1)

    def forward_both(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return the logits of the class token's and of the distillation token's head [2, B, classes], and reports.

        For the arguments, see `forward_features`.
        """
        x, reports = self.forward_tokens(inputs, keys)
        return torch.stack([self.head(x[:, 0]), self.head_dist(x[:, 1])]), reports

    def forward(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return the mean of both heads' logits [B, classes] and the MoE layers' reports."""
        both, reports = self.forward_both(inputs, keys)
        return both.mean(dim=0), reports
