"""The parts that all-MLP models share.

Shape letters, used in every file of this package: B images, S patches, C channels; S1 and C1 are S and C inside a
sparse block, between its re-represent layers.
"""

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe.stats import MoEReport

Reports = dict[str, MoEReport]
"""Each MoE layer's report of one forward pass, by the layer's name."""


class Mlp(nn.Module):
    """MLP(x) = W2 gelu(W1 x + b1) + b2 (Sparse-MLP 2.1): [*, D] -> [*, D]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to the last axis."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: [B, 3, H, W] -> [B, S, C] (MLP-Mixer 2, the stem)."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images of any float type; the result has the projection's."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): drop a residual branch for whole images, and rescale those kept.

    Which images is drawn from their keys, hence the same on any number of ranks.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.stream = 0  # set by registry.build from the module's name

    def forward(self, branch: Tensor, keys: Tensor | None) -> Tensor:
        """branch: [B, S, C]; keys: [B] in training, None otherwise."""
        if keys is None or self.rate == 0:
            return branch
        kept = rng.uniform(keys, self.stream, 1) >= self.rate  # [B, 1]
        return branch * (kept / (1 - self.rate)).to(branch.dtype)[:, :, None]


class Rerepresent(nn.Module):
    """Change the shape of the representation: [B, S, C] -> [B, S_out, C_out] (Sparse-MLP, Algorithm 1).

    LayerNorm and a projection with GELU on each axis. On the way into a sparse block the patch axis is projected first,
    on the way out last; the skip connections of the block neither start before nor end behind it.
    """

    def __init__(self, tokens: tuple[int, int], width: tuple[int, int], tokens_first: bool):
        """tokens: (S, S_out). width: (C, C_out)."""
        super().__init__()
        self.tokens_first = tokens_first
        self.norm1 = nn.LayerNorm(width[0])
        self.norm2 = nn.LayerNorm(width[0] if tokens_first else width[1])
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


def init_weights(model: nn.Module, seed: int) -> None:
    """Initialise as MLP-Mixer's reference code does: LeCun-normal weights, zero biases, zero head.

    Every tensor is drawn from a stream of its own, keyed by (seed, its name). Names carry global expert ids, so experts
    differ from one another and do not depend on where they live, nor on what else the model holds.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases, and the weights of norms
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("head.weight"):
                parameter.zero_()
            else:
                generator = torch.Generator().manual_seed(rng.stream_id(f"{seed}/{name}"))
                _lecun_normal(parameter, generator)


def _lecun_normal(weight: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in, ...] from N(0, 1 / fan_in) truncated at two deviations, its variance restored as Flax does."""
    fan_in = weight[0].numel()
    truncated_std = 0.87962566103423978  # of a standard normal cut at +-2
    std = fan_in**-0.5 / truncated_std
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
