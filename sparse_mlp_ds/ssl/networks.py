"""The two networks of MoCo v3: the online network, which is trained, and the momentum encoder, which follows it."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.ssl.heads import MlpHead


class OnlineNet(nn.Module):
    """Backbone, projector (3 layers) and predictor (2 layers)."""

    def __init__(self, backbone: Backbone, hidden: int, dim: int):
        """hidden: width of the heads' hidden layers. dim: length of a query."""
        super().__init__()
        self.backbone = backbone
        self.projector = MlpHead(3, backbone.width, hidden, dim)
        self.predictor = MlpHead(2, dim, hidden, dim)

    def forward(self, images: Tensor, random_keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return features [B, C] of images [B, 3, H, W], and the MoE layers' reports.

        random_keys: [B] in training, from `rng.sample_keys`, not the keys of the loss; None in evaluation.
        """
        return self.backbone.forward_features(images, random_keys)

    def queries(self, features: Tensor) -> Tensor:
        """Return queries [2, B, dim] of both views' features [2, B, C].

        Batch norm makes each query depend on all images of its view, those of other ranks included.
        """
        return self.predictor(self.projector(features))


class MomentumNet(nn.Module):
    """Backbone and projector, whose weights are an exponential moving average of the online network's.

    See `models.ema`. Its MoE layers route without noise and add no balance loss.
    """

    def __init__(self, backbone: Backbone, hidden: int, dim: int):
        """hidden: width of the projector's hidden layers. dim: length of a key."""
        super().__init__()
        self.backbone = backbone
        self.projector = MlpHead(3, backbone.width, hidden, dim)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, C] of images [B, 3, H, W]."""
        return self.backbone.forward_features(images)[0]

    @torch.no_grad()
    def keys(self, features: Tensor) -> Tensor:
        """Return keys [2, B, dim] of both views' features [2, B, C]."""
        return self.projector(features)
