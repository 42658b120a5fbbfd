"""The parts that the models share.

Shape letters, used in every file of this package: B images, S patches, C channels; S1 and C1 are S and C inside a
sparse block, between its re-represent layers; F hidden channels of a gMLP block.

Keys, where a module takes them, are random keys as `rng.sample_keys` makes them, one for each image. Everything random
in training is a function of them, and is therefore the same on any number of ranks. They are None in evaluation, where
nothing is random.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from sparse_mlp_ds import rng
from sparse_mlp_ds.moe import grouped, in_turn

LN_EPS = 1e-6
"""Epsilon of every LayerNorm, as in the papers' reference code (Flax's default); torch's default is 1e-5."""

InitRule = Callable[[str, Tensor, torch.Generator], None]
"""A function (name, parameter, random generator) that fills the parameter; `init_parameter` of a module is one."""


class Dropout(nn.Module):
    """Dropout (Srivastava et al., 2014) whose draws are a function of the images' keys."""

    stream: Tensor
    """Number of the stream of its random draws, a scalar int64."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        # As a tensor, a stream is one more input of a compiled graph, which then serves all blocks.
        self.register_buffer("stream", torch.tensor(0), persistent=False)  # set by registry.build from its name

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Drop elements of x [B, ...] and rescale the rest; keys: [B] in training, None in evaluation."""
        if keys is None or self.rate == 0:
            return x
        return x * self._factor(keys, self.stream, math.prod(x.shape[1:])).view(x.shape).to(x.dtype)

    def _factor(self, keys: Tensor, stream: Tensor, width: int) -> Tensor:
        return (rng.uniform(keys, stream, width) >= self.rate) / (1 - self.rate)

    @staticmethod
    def factors(layers: "Sequence[Dropout]", sizes: Sequence[int], keys: Tensor | None, width: int) -> Tensor | None:
        """Return what several layers of one rate, of which each has its own rows, multiply them with: [R, width].

        sizes: number of rows of each layer, which lie behind one another. keys: [R], or None in evaluation. Returns
        None where nothing is dropped.
        """
        if keys is None or layers[0].rate == 0:
            return None
        streams = torch.stack([layer.stream for layer in layers])
        by_row = streams.repeat_interleave(torch.tensor(sizes, device=streams.device), output_size=len(keys))
        return layers[0]._factor(keys, by_row, width)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): drop a residual branch for whole images, and rescale the others.

    Whether an image is dropped is a function of its key.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.stream = 0  # set by registry.build from the module's name

    def forward(self, branch: Tensor, keys: Tensor | None, factor: Tensor | None = None) -> Tensor:
        """Drop images of branch [B, S, C].

        keys: [B] in training, None in evaluation. factor: [B], what `path_factors` drew for this module, if it was
        asked.
        """
        # With a factor, nothing is read here that is different in another block: all of them can be one compiled graph.
        if factor is None:
            if keys is None or self.rate == 0:
                return branch
            (factor,) = path_factors([self], keys)
        return branch * factor.to(branch.dtype)[:, None, None]


Factors = Sequence[Tensor | None]
"""For each `DropPath` of a block, what it multiplies each image's branch with: [B] float32, 0 or 1 / (1 - rate); None
where nothing was drawn."""
NO_FACTORS: Factors = (None, None)
"""For a block of at most two `DropPath`s, for which nothing was drawn."""


def path_factors(paths: Sequence[DropPath], keys: Tensor) -> tuple[Tensor, ...]:
    """Return the factors of several `DropPath`s, all drawn at once.

    keys: [B], or [paths, B] if they differ between paths.
    """
    streams, rates = _of_paths(tuple((path.stream, path.rate) for path in paths), keys.device)
    kept = rng.uniform_by_stream(keys, streams) >= rates
    return (kept / (1 - rates)).unbind(0)


@lru_cache(maxsize=64)
def _of_paths(paths: tuple[tuple[int, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return streams [S] int64 and rates [S, 1] float32 on a device; copies to a GPU make the host wait."""
    streams, rates = zip(*paths, strict=True)
    return torch.tensor(streams, device=device), torch.tensor(rates, device=device)[:, None]


class Linear(nn.Linear):
    """A linear layer along the last axis or the patch axis.

    A layer's weights are read in its own `forward` and nowhere else, because ZeRO-3 collects them when it is called.
    """

    def forward(self, x: Tensor, over_patches: bool = False) -> Tensor:
        """[*, D] -> [*, D'], or over patches [B, S, C] -> [B, S', C]."""
        return along_tokens(self, x) if over_patches else super().forward(x)


class Mlp(nn.Module):
    """MLP(x) = W2 gelu(W1 x + b1) + b2 (Sparse-MLP 2.1): [*, D] -> [*, D], with dropout after GELU and at the end."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.dropout1 = Dropout(dropout)
        self.fc2 = Linear(hidden, dim)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Apply the MLP to the last axis of x [B, ..., D]; keys: [B] in training, None in evaluation."""
        hidden = self.dropout1(nn.functional.gelu(self.fc1(x)), keys)
        return self.dropout2(self.fc2(hidden), keys)

    def mix_tokens(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Apply the MLP along the patch axis: [B, S, C] -> [B, S, C], equal to `forward` on transposed axes."""
        if keys is not None and (self.dropout1.rate or self.dropout2.rate):
            return self(x.transpose(1, 2), keys).transpose(1, 2)  # the order of axes decides what is dropped
        return self.fc2(nn.functional.gelu(self.fc1(x, over_patches=True)), over_patches=True)

    @staticmethod
    def together(experts: "Sequence[Mlp]", rows: Tensor, segments: grouped.Segments) -> Tensor:
        """Apply several MLPs of one shape, without dropout, each to its rows: [R, D] -> [R, D].

        segments: which rows are each one's; what is nobody's is not defined.
        """
        hidden = nn.functional.gelu(grouped.linear(rows, [expert.fc1 for expert in experts], segments))
        return grouped.linear(hidden, [expert.fc2 for expert in experts], segments)

    @staticmethod
    def in_turn(
        experts: "Sequence[Mlp]", rows: Tensor, sizes: Sequence[int] | Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Apply several MLPs of one shape one after another, each to its rows: [R, D] -> [R, D].

        sizes: number of rows of each, which lie behind one another; as a tensor [E] in a compiled graph, without keys.
        keys: random keys in training, each for as many neighbouring rows; None in evaluation.
        """
        layers = [(expert.fc1, expert.fc2) for expert in experts]
        if keys is None or len(keys) == 0:
            return in_turn.mlps(rows, sizes, layers)
        assert not isinstance(sizes, Tensor)
        per_key = len(rows) // len(keys)
        of_keys, last = [size // per_key for size in sizes], experts[0].fc2
        inside = Dropout.factors([e.dropout1 for e in experts], of_keys, keys, per_key * last.in_features)
        behind = Dropout.factors([e.dropout2 for e in experts], of_keys, keys, per_key * last.out_features)
        made = in_turn.mlps(rows, sizes, layers, None if inside is None else inside.view(-1, last.in_features))
        return made if behind is None else made * behind.view_as(made).to(made.dtype)


def along_tokens(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer along the patch axis: [B, S, C] -> [B, S', C].

    One product per image, which leaves rows of C values where they are: transposing takes longer than the product.
    """
    assert layer.bias is not None
    return torch.baddbmm(layer.bias[None, :, None], layer.weight.expand(x.shape[0], -1, -1), x)


class Affine(nn.Module):
    """y = weight x + bias, channel by channel: ResMLP's norm, without statistics (Touvron et al., 2021, eq. 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x [*, C]."""
        return torch.addcmul(self.bias, self.weight, x)


class LayerScale(nn.Module):
    """Multiply each channel by a trained weight, which starts small (Touvron et al., 2021, CaiT)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.start = start
        self.weight = nn.Parameter(torch.full((width,), start))

    def forward(self, branch: Tensor) -> Tensor:
        """Scale a residual branch [*, C]."""
        return self.weight * branch

    def init_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill with the starting value."""
        parameter.fill_(self.start)


class PatchProjection(nn.Conv2d):
    """A convolution whose kernels do not overlap, computed as a product of matrices: [B, 3, H, W] -> [B, S, C]."""

    def forward(self, images: Tensor) -> Tensor:
        """Project images of any float type, whose sides are multiples of the patch size.

        The result has the type of the projection's weights.
        """
        # The gradient of a product of matrices is the same in every run: cuDNN may add up that of a convolution's
        # weights in any order.
        side = self.kernel_size[0]
        patches = images.to(self.weight.dtype).unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, 3, H', P, W', P]
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, S, 3 P P]
        return nn.functional.linear(patches, self.weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Cut an image into patches and project each: [B, 3, H, W] -> [B, S, C] (MLP-Mixer 2, the stem)."""

    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = PatchProjection(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Project images, see `PatchProjection`."""
        return self.proj(images)


def init_weights(model: nn.Module, seed: int) -> None:
    """Initialise every parameter, in place.

    A parameter is filled by the method `init_parameter` of the innermost module around it that has one, and else by
    `lecun_normal`, as in MLP-Mixer's reference code. Each tensor has a random stream of its own, keyed by the seed and
    the tensor's name. Names contain global expert ids, so experts differ from each other, and no tensor depends on the
    rank that holds it or on the rest of the model. Numbers are drawn on the CPU, so that weights are the same on every
    device.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(rng.stream_id(f"{seed}/{name}"))
            drawn = torch.empty_like(parameter, device="cpu")
            _rule(model, name)(name, drawn, generator)
            parameter.copy_(drawn)


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
    """Fill [out, in, ...] from U(-b, b), b^2 = 6 / (fan_in + out); a patch projection counts as the matrix it is."""
    if not _fill_constant(name, parameter):
        bound = (6 / (parameter[0].numel() + parameter.shape[0])) ** 0.5
        nn.init.uniform_(parameter, -bound, bound, generator=generator)


def linear_default(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Fill [out, in] from U(-b, b), b^2 = 1 / fan_in, as torch's nn.Linear does (kaiming_uniform with a = sqrt(5))."""
    if not _fill_constant(name, parameter):
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)


def _fill_constant(name: str, parameter: Tensor) -> bool:
    """Fill a parameter that is not random, and return whether it was one.

    Norms start as identities, biases and the classifier's weights at zero.
    """
    if parameter.ndim == 1:
        parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    elif name.endswith(("head.weight", "head_dist.weight")):
        parameter.zero_()
    else:
        return False
    return True
