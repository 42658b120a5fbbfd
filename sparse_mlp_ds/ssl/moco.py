"""The two networks of MoCo v3: the online net that is trained and the momentum net that follows it."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.ssl.heads import mlp_head


class OnlineNet(nn.Module):
    """Backbone, projector (3 layers) and predictor (2 layers)."""

    def __init__(self, backbone: Backbone, hidden: int, dim: int):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp_head(3, backbone.width, hidden, dim)
        self.predictor = mlp_head(2, dim, hidden, dim)

    def forward(self, images: Tensor, keys: Tensor) -> tuple[Tensor, Reports]:
        """Return features [B, C] and the MoE layers' reports; keys: [B] sample keys."""
        return self.backbone.forward_features(images, keys)

    def queries(self, features: Tensor) -> Tensor:
        """Return queries [B, dim] of features [B, C]; batch norm makes them depend on all of the batch."""
        return self.predictor(self.projector(features))


class MomentumNet(nn.Module):
    """Backbone and projector as an exponential moving average of the online net's.

    It routes without noise and adds no balance loss. See `models.average`.
    """

    def __init__(self, backbone: Backbone, hidden: int, dim: int):
        super().__init__()
        self.backbone = backbone
        self.projector = mlp_head(3, backbone.width, hidden, dim)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, C]."""
        return self.backbone.forward_features(images)[0]

    @torch.no_grad()
    def keys(self, features: Tensor) -> Tensor:
        """Return keys [B, dim] of features [B, C]."""
        return self.projector(features)
