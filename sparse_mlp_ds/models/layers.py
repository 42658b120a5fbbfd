"""The parts that the models share.

Shape letters, used in every file of this package: B images, S patches, C channels; S1 and C1 are S and C inside a
sparse block, between its re-represent layers; F hidden channels of a gMLP block.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng

LN_EPS = 1e-6
"""Of every LayerNorm: that of the papers' reference code (Flax's default), not torch's 1e-5."""


InitRule = Callable[[str, Tensor, torch.Generator], None]
"""(name, parameter, its random stream) -> fills the parameter; a module's `init_parameter` is one."""


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose draws belong to the sample, hence the same on any number of ranks."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.stream = 0  # set by registry.build from the module's name

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x: [B, ...]; keys: [B] in training, None otherwise."""
        if keys is None or self.rate == 0:
            return x
        kept = rng.uniform(keys, self.stream, math.prod(x.shape[1:])) >= self.rate
        return x * (kept.view(x.shape) / (1 - self.rate)).to(x.dtype)


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


class Mlp(nn.Module):
    """MLP(x) = W2 gelu(W1 x + b1) + b2 (Sparse-MLP 2.1): [*, D] -> [*, D], with dropout after GELU and at the end."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dropout1 = Dropout(dropout)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Apply the MLP to the last axis; x: [B, ..., D], keys: [B], without which nothing is dropped."""
        hidden = self.dropout1(nn.functional.gelu(self.fc1(x)), keys)
        return self.dropout2(self.fc2(hidden), keys)


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: [B, 3, H, W] -> [B, S, C] (MLP-Mixer 2, the stem)."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images of any float type; the result has the projection's."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


def init_weights(model: nn.Module, seed: int) -> None:
    """Initialise every parameter by the rule of the innermost module around it that has a method `init_parameter`.

    Where none has one, `lecun_normal` is the rule: MLP-Mixer's reference code. Every tensor is drawn from a stream of
    its own, keyed by (seed, its name). Names carry global expert ids, so experts differ from one another and do not
    depend on where they live, nor on what else the model holds.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(rng.stream_id(f"{seed}/{name}"))
            _rule(model, name)(name, parameter, generator)


def _rule(model: nn.Module, name: str) -> InitRule:
    """Return the rule for the parameter called `name`."""
    module, rule = model, getattr(model, "init_parameter", lecun_normal)
    for child in name.split(".")[:-1]:
        module = getattr(module, child)
        rule = getattr(module, "init_parameter", rule)
    return rule


def lecun_normal(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in, ...] from N(0, 1 / fan_in) truncated at two deviations, its variance restored as Flax does."""
    if not _fill_constant(name, parameter):
        fan_in = parameter[0].numel()
        truncated_std = 0.87962566103423978  # of a standard normal cut at +-2
        std = fan_in**-0.5 / truncated_std
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)


def xavier_uniform(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in, ...] from U(-b, b), b^2 = 6 / (fan_in + out): a convolution counts as the matrix that it is."""
    if not _fill_constant(name, parameter):
        bound = (6 / (parameter[0].numel() + parameter.shape[0])) ** 0.5
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _fill_constant(name: str, parameter: Tensor) -> bool:
    """Fill what no rule draws: norms start as identities, biases and the head at zero. Say whether it was that."""
    if parameter.ndim == 1:
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    elif name.endswith("head.weight"):
        parameter.zero_()
    else:
        return False
    return True
