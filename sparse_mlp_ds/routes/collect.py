"""From a model and images to a record of what the experts do, on any number of ranks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.spec import PatchSpec
from sparse_mlp_ds.routes import pictures, weights
from sparse_mlp_ds.routes.agreement import agreement
from sparse_mlp_ds.routes.counts import RouteCounts, count
from sparse_mlp_ds.routes.layers import Layer, layers_of
from sparse_mlp_ds.routes.record import LayerRoutes, Load, Picture, Record, TokenMixing, TopImage

Batches = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Normalised images [B, 3, H, W], labels [B] and numbers [B]; the same number of batches on every rank."""


@dataclass(frozen=True)
class Images:
    """The images that a model is looked at with."""

    index: Index
    """Where they are."""
    data: Data
    """How they are read."""
    classes: Sequence[str]
    """Names of their classes, one for each of `data.classes`."""


def collect(
    backbone: Backbone,
    spec: PatchSpec,
    images: Images,
    batches: Batches,
    model: str,
    load: Callable[[set[str]], tuple[Load, ...]] | None = None,
) -> Record | None:
    """Send images through a model and return what its experts did, on rank 0; None on other ranks. Collective.

    Args:
        backbone: The model; it has MoE layers.
        spec: What the model is.
        images: The images.
        batches: The same images, as `train.evaluate.batches` yields them.
        model: What the weights are, for titles.
        load: Returns the load of the layers of these names during training; called on rank 0.
    """
    layers = layers_of(backbone, spec)
    shown = pictures.to_show(images.index, images.data.class_count) if any(layer.on_grid for layer in layers) else []
    counts = count(backbone, batches, layers, images.data.class_count, shown)
    experts = weights.of_experts(backbone, layers)
    if process_group.rank() != 0:
        return None
    fields = {name: {number: one[0] for number, one in members.items()} for name, members in experts.items()}
    found = tuple(_layer(backbone, counts, place, fields) for place in range(len(layers)))
    return Record(
        model=model,
        data=images.index.source,
        images=int(counts.images),
        classes=tuple(images.classes),
        side=spec.image_size // spec.patch_size,
        layers=found,
        agreement=agreement(counts),
        load=load({layer.name for layer in layers}) if load else (),
        token_mixing=_token_mixing(backbone, layers, experts),
        pictures=_pictures(found, images, spec.image_size),
    )


def _layer(backbone: Backbone, counts: RouteCounts, place: int, fields: dict[str, dict[int, Tensor]]) -> LayerRoutes:
    """Return what one layer did. place: its position among the MoE layers. fields: of the experts of MoE_S layers."""
    layer, by_item = counts.layers[place], counts.by_item[place]
    (entropy,) = weights.rows((counts.entropy[place] / counts.images.clamp_min(1))[None])
    return LayerRoutes(
        name=layer.name,
        kind=layer.kind,
        experts=layer.experts,
        top_k=layer.moe.router.top_k,
        on_grid=layer.on_grid,
        rerepresented=layer.rerepresented,
        by_class=_whole(counts.by_class[place]),
        by_item=_whole(by_item),
        entropy_by_item=entropy,
        entropy_histogram=tuple(counts.histogram[place].long().tolist()),
        top_images=tuple(
            tuple(TopImage(image=number, items=items, weight=weight) for items, weight, number in one)
            for one in counts.top[place]
        ),
        field=weights.field(backbone, layer, by_item, fields.get(layer.name, {})),
        expert_of_patch={number: tuple(one) for number, one in sorted(counts.of_patch[place].items())},
    )


def _token_mixing(
    backbone: Backbone, layers: list[Layer], experts: dict[str, dict[int, tuple[Tensor, Tensor]]]
) -> tuple[TokenMixing, ...]:
    return weights.token_mixing(backbone, experts) if any(layer.kind == "moe_s" for layer in layers) else ()


def _pictures(layers: Sequence[LayerRoutes], images: Images, size: int) -> dict[int, Picture]:
    """Return the images that the layers name. size: Side of the model's input, pixels."""
    top = {one.image for layer in layers for expert in layer.top_images for one in expert}
    shown = {number for layer in layers for number in layer.expert_of_patch}
    return pictures.read(top | shown, images.index, images.data, size)


def _whole(counts: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return counts [N, M] as whole numbers."""
    return tuple(tuple(row) for row in counts.long().tolist())
