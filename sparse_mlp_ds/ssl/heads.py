"""Projector and predictor of MoCo v3, with batch norm over each view's global batch."""

import torch
from torch import Tensor, nn

from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.models.layers import linear_default


class GlobalBatchNorm(nn.Module):
    """Batch norm over the images of all ranks, each view by itself: [V, B, D] -> [V, B, D], for V views of B images.

    MoCo v3 passes one view at a time through its heads (algorithm 1), so a batch norm never sees both. Here the views
    travel together, in one all-reduce for the means and one for the variances. Gradients flow through every rank's
    statistics. torch's SyncBatchNorm needs a GPU. There are no running statistics, because the heads are dropped after
    pretraining.
    """

    def __init__(self, dim: int, affine: bool = True, eps: float = 1e-5):
        """dim: features D. affine: whether there are a weight and a bias per feature."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [V, B, D]; ranks may have different B. Statistics are float32 under every precision."""
        views, images, dim = x.shape
        count = x.new_full((1,), images, dtype=torch.float32)
        sums = comm.total(torch.cat([x.float().sum(dim=1).flatten(), count]))
        count = sums[-1]
        centred = x.float() - (sums[:-1] / count).view(views, 1, dim)
        variance = comm.total(centred.square().sum(dim=1, keepdim=True)) / count  # [V, 1, D]
        normal = (centred * (variance + self.eps).rsqrt()).to(x.dtype)
        return normal if self.weight is None or self.bias is None else normal * self.weight + self.bias


class MlpHead(nn.Sequential):
    """Linear layers without bias, each followed by batch norm, with ReLU between them: [V, B, dim] -> [V, B, out].

    The last batch norm has no affine weights (MoCo v3, section 4.1).
    """

    def __init__(self, layers: int, dim: int, hidden: int, out: int):
        """Build the head.

        Args:
            layers: number of linear layers.
            dim: features of the input.
            hidden: outputs of every linear layer but the last.
            out: outputs of the last linear layer.
        """
        modules: list[nn.Module] = []
        for layer in range(layers):
            last = layer == layers - 1
            width_in, width_out = dim if layer == 0 else hidden, out if last else hidden
            modules += [nn.Linear(width_in, width_out, bias=False), GlobalBatchNorm(width_out, affine=not last)]
            if not last:
                modules.append(nn.ReLU())
        super().__init__(*modules)

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill a parameter as torch's own modules start.

        MoCo v3's reference code builds the heads after it has initialised the ViT (vits.py draws Xavier-uniform in the
        constructor, builder.py then replaces the ViT's head), and leaves their nn.Linear as torch made them.
        """
        linear_default(name, parameter, generator)
