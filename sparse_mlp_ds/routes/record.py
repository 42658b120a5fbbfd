"""The content of routes.json: everything that the pictures are drawn from, as plain numbers."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.schema import Section

FILE_NAME = "routes.json"

Row = tuple[float, ...]
Counts = tuple[int, ...]


class TopImage(Section):
    """An image that sends many of its items to one expert."""

    image: int
    """Number of the image, a key of `Record.pictures`."""
    items: int
    """How many of the image's items the expert got."""
    weight: float
    """Sum of these items' gate weights."""


class LayerRoutes(Section):
    """What one MoE layer did with the images. E experts, T items per image, S patches of the image."""

    name: str
    """The layer's name in the records of a run, such as `4.moe_s`: number of the block, and mixing type."""
    kind: Literal["moe_s", "moe_c"]
    """Mixing type: `moe_s` routes channels and mixes patches, `moe_c` routes patches and mixes channels."""
    experts: int
    """Number of experts E."""
    top_k: int
    """Experts per item, K."""
    on_grid: bool
    """Whether the items are the image's own patches, row by row; the items of re-represented layers are not."""
    rerepresented: bool
    """Whether a re-represent layer stands in front, whose patches are mixtures of the image's."""
    by_class: tuple[Counts, ...]
    """[classes, E]: how often items of the class's images went to the expert."""
    by_item: tuple[Counts, ...]
    """[T, E]: in how many images the item went to the expert. T counts patches and channels, no class token."""
    entropy_by_item: Row
    """[T]: mean over images of the item's gate entropy, over log E; 1 is undecided."""
    entropy_histogram: Counts
    """Items of all images by their gate entropy, in equal steps from 0 to log E."""
    top_images: tuple[tuple[TopImage, ...], ...]
    """[E]: the images that send the expert most of their items, the most first."""
    field: tuple[Row, ...]
    """[E, S]: how much the expert depends on each patch of the image, over its mean; 1 everywhere is indifferent. See
    `routes.weights`."""
    expert_of_patch: dict[int, Counts] = {}
    """Where patches are routed: image -> [S] first choice of each patch, -1 for a patch that no expert took."""


class Agreement(Section):
    """How much pairs of MoE layers agree, as [layers, layers] from 0 to 1; None where it is not defined."""

    images: tuple[tuple[float | None, ...], ...]
    """Linear centred kernel alignment (Kornblith et al., 2019) of the images' loads: 1 if images that load the experts
    of one layer alike load those of the other layer alike. None where all images load a layer's experts equally."""
    items: tuple[tuple[float | None, ...], ...]
    """Normalised mutual information of the same item's first choices: 1 if an item's expert in one layer tells its
    expert in the other. None between layers whose items differ, and where a layer sends all items to one expert."""


class Load(Section):
    """How the load of an MoE layer was spread over its experts during one stage of training."""

    stage: str
    """Name of the stage."""
    layer: str
    """Name of the layer."""
    steps: Counts
    """[N] the run's optimizer step at the end of each stretch of records that were added up."""
    items: tuple[Counts, ...]
    """[N, E]: items that chose the expert, over all ranks, with or without a slot."""


class TokenMixing(Section):
    """Weights that mix patches: of the first layer of a dense block's MLP, or of one expert."""

    name: str
    """`block 0`, or the layer and the expert, as in `4.moe_s expert 1`."""
    units: tuple[Row, ...]
    """[N, S]: weights of the hidden units with the largest norms, on the patches of the image."""


class Picture(Section):
    """An image that the record names."""

    key: str
    """Its key in the tar."""
    label: int
    """Number of its class."""
    jpeg: str
    """The image as the model sees it, scaled down if it is large: a JPEG in base64."""


class Record(Section):
    """What the experts of a model do with a set of images."""

    format: Literal[1] = 1
    """Version of the layout of routes.json."""
    model: str
    """What the weights are, for titles: model, recipe, stage and step as far as they are known."""
    data: str
    """Where the images are from."""
    images: int
    """Number of images that were counted."""
    classes: tuple[str, ...]
    """Names of the classes."""
    side: int
    """Patches along one side of the image; S is its square."""
    layers: tuple[LayerRoutes, ...]
    """The MoE layers, from the model's first to its last."""
    agreement: Agreement
    """How much the layers agree with each other."""
    load: tuple[Load, ...] = ()
    """Load during training, where the records of a run are there."""
    token_mixing: tuple[TokenMixing, ...] = ()
    """Weights that mix patches, where MLPs do that."""
    pictures: dict[int, Picture] = {}
    """The images that `top_images` and `expert_of_patch` name, by their numbers in `data`."""


def read(path: Path) -> Record:
    """Read a routes.json. Raises UserError that names what is wrong with it."""
    fix = "write it again with `sparse-mlp-ds routes`"
    try:
        return Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {fix}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not a record of routes ({where}: {' '.join(first['msg'].split())}); {fix}") from None
