"""The recipe's sections about data: where the images are, and how views of them are drawn."""

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

from sparse_mlp_ds import files
from sparse_mlp_ds.schema import Probability, Section


def _expanded(path: str) -> str:
    """Fill in `~` and `$NAME`, except in a command, whose shell does it."""
    return path if path.startswith("pipe:") else files.expand(path)


LocalOrRemote = Annotated[str, AfterValidator(_expanded)]
"""Path or URL of data."""
WeightsPlace = Annotated[str, AfterValidator(lambda path: path if "://" in path else str(Path(files.expand(path))))]
"""Path on this host, URL, or hf://OWNER/NAME of weights."""
LocalPath = Annotated[Path, AfterValidator(lambda path: Path(files.expand(str(path))))]
"""Path on this host."""


class Source(Section):
    """A data set: WebDataset tars and their index.json."""

    path: LocalOrRemote
    """A folder of tars, a pattern such as `FOLDER/train-{000000..000146}.tar`, either of them behind http(s)://, s3://
    or another URL that fsspec opens, or `pipe:COMMAND` with such a pattern in the command."""
    index: LocalOrRemote | None = None
    """Path or URL of the index.json, if it does not lie beside the tars."""
    weight: PositiveFloat | None = None
    """Weight of this source in a mixture. All sources have a weight, or none has one: then an epoch contains every
    sample of every source once."""


class RemoteCache(Section):
    """Where copies of remote tars are kept; each host has its own cache."""

    folder: LocalPath
    """Folder of the cache on a local disk."""
    gigabytes: PositiveFloat
    """Largest total size of the tars in the folder, in units of 10^9 bytes."""


def _as_list(value: Any) -> Any:
    """Accept a path or a source where a list of sources is expected."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in values]


def _all_or_none_weighted(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    if len({source.weight is None for source in sources}) > 1:
        raise ValueError("some sources have a weight and some have none; give all of them one, or none")
    return sources


Sources = Annotated[
    tuple[Source, ...],
    Field(min_length=1),
    BeforeValidator(_as_list, json_schema_input_type=str | Source | list[str | Source]),
    AfterValidator(_all_or_none_weighted),
]


class Pixels(Section):
    """How an image outside of training becomes the network's input."""

    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Side of the central square that evaluation cuts out, as a share of the image's shorter side; 0.875 is usual for
    ImageNet."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means that are subtracted from images in [0, 1]; the default is ImageNet's."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Channel standard deviations that images are divided by; the default is ImageNet's."""


class Data(Pixels):
    """Where the samples (images, or sequences of tokens) are, and how they are read."""

    train: Sources
    """Samples of all training stages: a path, or a list of sources that are mixed."""
    val: Sources | None = None
    """Samples held out for evaluation: a path, or a list of sources. If all stages pretrain, null is possible."""
    classes: PositiveInt | None = None
    """Number of classes; labels are 0 to classes - 1. If no stage learns classes, null is possible: labels are not
    read."""
    probe: Sources | None = None
    """Labelled images for the k-NN accuracy of pretraining stages: each one is classified by the others. null searches
    among `train` for images like those of `val`, if there are `val` and `classes`."""
    embedded: Literal["digits", "speeches"] | None = None
    """Name of an embedded data set. It is written into the parent folder of `train` and `val` when they do not exist
    yet."""
    workers: NonNegativeInt | None = None
    """Loader processes per rank; with 0 the training process decodes the images itself. If null, the rank's share of
    the host's cores minus one, at least 1 and at most 16."""
    shuffle_shards: NonNegativeInt = 0
    """Number of tars whose samples are shuffled together; 0 shuffles all tars together. With few, reads stay close
    to each other, which helps with a slow disk or a cache that is smaller than the data."""
    tail: Literal["drop", "pad"] = "drop"
    """What happens to the samples at the end of an epoch that do not fill a batch: `drop` leaves them out, `pad` fills
    the batch with samples from the beginning of the epoch."""
    bad_limit: Probability = 0.01
    """Largest share of an epoch's samples that may be unusable before the run stops. Up to there, each unusable sample
    is replaced by the next one."""
    decoded_gigabytes: NonNegativeFloat = 0
    """What decoded training images may take that each loader process keeps in memory, in units of 10^9 bytes. It saves
    decoding small images in every epoch; those twice as large as the network's input or larger are not kept."""
    cache: RemoteCache | None = None
    """Where copies of remote tars are kept. Remote sources need it."""
    allow_commands: bool = False
    """Whether sources of the form `pipe:COMMAND` may run their command."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All data sets that the recipe names."""
        return (*self.train, *(self.val or ()), *(self.probe or ()))

    @property
    def class_count(self) -> int:
        """Number of classes; 0 if labels are not read."""
        return self.classes or 0


class Jitter(Section):
    """Colour jitter: random changes of brightness, contrast, saturation and hue, in this order."""

    p: Probability = 0.8
    """Probability that an image is jittered."""
    brightness: NonNegativeFloat = 0.4
    """Brightness is multiplied by a random factor from 1 - brightness to 1 + brightness."""
    contrast: NonNegativeFloat = 0.4
    """Contrast is multiplied by a random factor from 1 - contrast to 1 + contrast."""
    saturation: NonNegativeFloat = 0.2
    """Saturation is multiplied by a random factor from 1 - saturation to 1 + saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Hue is shifted by a random part of a full turn, from -hue to hue."""


class Blur(Section):
    """Gaussian blur."""

    p: Probability
    """Probability that an image is blurred."""
    sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Range of the blur's standard deviation, pixels."""


class RandAugment(Section):
    """RandAugment (Cubuk et al., 2020): a few random operations, one after the other."""

    policy: Literal["paper", "deit", "big_vision"] = "paper"
    """`paper`: the paper's 14 operations. `deit`: 15 of timm's `rand-m9-mstd0.5-inc1`, each applied with probability
    1/2. `big_vision`: 16 of MLP-Mixer, V-MoE and WideNet, with lengths in pixels for images of 224."""
    ops: PositiveInt = 2
    """Number of operations per image."""
    magnitude: Annotated[float, Field(ge=0, le=30)] = 9.0
    """Strength of every operation on the paper's scale from 0 to 10. `deit` draws it from N(`magnitude`, 0.5) up to 10.
    The others go on above 10: MLP-Mixer and WideNet train at 15."""


class Erase(Section):
    """Random erasing (Zhong et al., 2020): a rectangle of 2 to 33 % of the image is filled."""

    p: Probability
    """Probability that an image loses a rectangle."""
    fill: Literal["mean", "noise"] = "mean"
    """`mean`: the image's mean colour. `noise`: a normal draw for each pixel and channel, with the mean and standard
    deviation of `data`, as DeiT erases."""


def _as_erase(value: Any) -> Any:
    """Accept a probability where a section is expected."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"p": value} if value else None
    return value


class Mix(Section):
    """Mixup and CutMix: each image and its label are mixed with those of its neighbour in the batch."""

    mixup: NonNegativeFloat = 0.0
    """alpha of mixup (Zhang et al., 2018): both images of a pair keep a share of themselves drawn from
    Beta(alpha, alpha). 0 switches it off."""
    cutmix: NonNegativeFloat = 0.0
    """alpha of CutMix (Yun et al., 2019). 0 switches it off. With mixup and CutMix on, each pair of images gets one of
    the two, with equal probability."""
    p: Probability = 1.0
    """Probability that a pair of images is mixed at all."""


class View(Section):
    """How an augmented view is drawn from an image; apart from the crop, every operation is optional."""

    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """Range of the crop's area as a share of the image's."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Range of the crop's width over its height, drawn on a logarithmic scale."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How the crop is scaled to the network's input."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Jitter | None = None
    """Colour jitter."""
    grayscale: Probability = 0.0
    """Probability that an image becomes grey."""
    blur: Blur | None = None
    """Gaussian blur."""
    solarize: Probability = 0.0
    """Probability of solarising: pixels above one half are inverted."""
    rand_augment: RandAugment | None = None
    """RandAugment."""
    auto_augment: Literal["original", "v0"] | None = None
    """AutoAugment (Cubuk et al., 2019), instead of RandAugment: `original` is the paper's table for ImageNet, `v0` the
    one of TensorFlow's code for EfficientNet, which at times gives black images."""
    erase: Annotated[Erase | None, BeforeValidator(_as_erase)] = None
    """Random erasing; a number is its probability."""

    @model_validator(mode="after")
    def _check_ranges(self) -> "View":
        if not self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"crop_scale {list(self.crop_scale)}: give [smallest, largest] with 0 < smallest <= largest <= 1"
            )
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)}: give [smallest, largest]")
        if self.rand_augment and self.auto_augment:
            raise ValueError("auto_augment and rand_augment are alternatives; set one of them to null")
        return self
