"""A split of a data set, before it is written as tars: its images, wherever they lie, and its classes."""

from dataclasses import dataclass, field

from sparse_mlp_ds.shards.passed_over import PassedOver


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image that lies somewhere in a file."""

    key: str
    """WebDataset key that the image gets in the shards."""
    label: int
    """Number of its class, or index.UNLABELLED."""
    path: str
    """The file that holds it."""
    offset: int
    """Where it starts in the file, bytes."""
    size: int
    """Its size, bytes."""
    shape: tuple[int, ...] | None = None
    """[H, W] or [H, W, 3] if the bytes are uint8 pixels; None if the image is encoded."""


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    name: str
    """`train`, `val`, or empty if the data set has one part only."""
    classes: list[str]
    """Class names; label n is classes[n]."""
    images: list[RawImage]
    """All images of the part."""
    origin: str = ""
    """Folder that the split was found in, if it has a name of its own, such as test for val."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """What in the source is no usable image; what belongs to no split is counted with the first one."""
    remarks: tuple[str, ...] = ()
    """Lines on how classes were numbered and named, where that is not obvious."""
