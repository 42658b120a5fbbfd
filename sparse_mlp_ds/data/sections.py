"""The recipe's sections about data: where images are, and how views of them are drawn."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sparse_mlp_ds.section import Probability, Section


class Source(Section):
    """A data set: WebDataset tars and their index.json."""

    path: str
    """A folder, a pattern such as `FOLDER/train-{000000..000146}.tar`, the same behind http(s)://, s3:// or another URL
    that fsspec opens, or `pipe:COMMAND` with such a pattern in it."""
    index: str | None = None
    """The index.json, if it does not lie beside the tars."""
    weight: PositiveFloat | None = None
    """Share of an epoch in a mixture; without, every sample of every source comes once. All have one, or none."""


class RemoteCache(Section):
    """Where remote tars are kept; each host has its own."""

    folder: Path
    gigabytes: PositiveFloat
    """Most that the folder may hold, 10^9 bytes."""


def _one_or_more(value: Any) -> Any:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [{"path": one} if isinstance(one, str) else one for one in values]


def _all_or_none_weighted(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    if len({source.weight is None for source in sources}) > 1:
        raise ValueError("some sources have a weight and some have none; give all of them one, or none")
    return sources


Sources = Annotated[
    tuple[Source, ...], Field(min_length=1), BeforeValidator(_one_or_more), AfterValidator(_all_or_none_weighted)
]


class Pixels(Section):
    """What a network sees of an image outside training."""

    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of an image's shorter side that evaluation keeps, centred; 0.875 is usual for ImageNet."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means subtracted from images in [0, 1]; the default is ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Channel standard deviations."""


class Data(Pixels):
    """Where the images are, and how they are read."""

    train: Sources
    """What every training stage reads: a path, or a list of sources that are mixed."""
    val: Sources
    """The same, held out."""
    classes: PositiveInt
    """Number of classes; labels are 0 .. classes - 1."""
    embedded: Literal["digits"] | None = None
    """An embedded data set, written into the parent of `train` and `val` when they do not exist."""
    workers: NonNegativeInt = 4
    """Loader processes per rank; 0 decodes in the training process."""
    shuffle_shards: NonNegativeInt = 0
    """Tars whose samples are shuffled together; 0 shuffles all. A few at a time keep reads from a slow disk, or a small
    cache, near one another."""
    tail: Literal["drop", "pad"] = "drop"
    """What becomes of the samples of an epoch that fill no batch: left out, or filled up from the epoch's beginning."""
    bad_limit: Probability = 0.01
    """Largest share of an epoch's samples that may be unusable before the run stops; others stand in for them."""
    cache: RemoteCache | None = None
    """Needed by remote sources."""
    allow_commands: bool = False
    """Whether `pipe:` sources may run."""


class Jitter(Section):
    """Colour jitter: factors drawn from 1 +- strength, hue shift from +- hue turns."""

    p: Probability = 0.8
    brightness: NonNegativeFloat = 0.4
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1


class Blur(Section):
    """Gaussian blur."""

    p: Probability
    sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the standard deviation, pixels."""


class RandAugment(Section):
    """Some random operations in a row (Cubuk et al., 2020)."""

    ops: PositiveInt = 2
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """Strength of every operation on the paper's scale 0 .. 10, or beyond it, as far as each operation goes: MLP-Mixer
    and WideNet train at 15."""


class Mix(Section):
    """Mixes each image and its label with its neighbour's in the batch."""

    mixup: NonNegativeFloat = 0.0
    """alpha of mixup (Zhang et al., 2018), whose share is drawn from Beta(alpha, alpha); 0 switches it off."""
    cutmix: NonNegativeFloat = 0.0
    """alpha of CutMix (Yun et al., 2019). With both on, each image gets one of them, as likely as the other."""
    p: Probability = 1.0
    """Probability that an image is mixed at all."""


class View(Section):
    """How one augmented view is drawn from an image; every operation is optional."""

    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """Range of the crop's area over the image's."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Range of the crop's width over height, drawn on a logarithmic scale."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Jitter | None = None
    grayscale: Probability = 0.0
    blur: Blur | None = None
    solarize: Probability = 0.0
    """Probability of inverting the pixels above one half."""
    rand_augment: RandAugment | None = None
    erase: Probability = 0.0
    """Probability of filling a random rectangle with the mean colour (random erasing, Zhong et al., 2020)."""

    @model_validator(mode="after")
    def _ranges(self):
        if not self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale {list(self.crop_scale)}: give [smallest, largest] with 0 < smallest <= largest <= 1"
            )
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)}: give [smallest, largest]")
        return self
