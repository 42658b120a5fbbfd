"""Pictures of a record of routes: each is made from the record alone, by name."""

from collections.abc import Callable, Iterator
from functools import partial

from matplotlib import rc_context

from sparse_mlp_ds.routes import image_figures
from sparse_mlp_ds.routes.count_figures import agreement, classes, entropy, items, load
from sparse_mlp_ds.routes.drawing import STYLE, Drawing
from sparse_mlp_ds.routes.record import LayerRoutes, Record

OF_LAYER: dict[str, Callable[[Record, LayerRoutes], Drawing | None]] = {
    "classes": classes,
    "items": items,
    "entropy": entropy,
    "images": image_figures.top_images,
    "fields": image_figures.fields,
    "patches": image_figures.patches,
    "token_mixing": image_figures.token_mixing_of_experts,
}
"""Name -> picture of one MoE layer, None where the layer has nothing of the kind."""
OF_MODEL: dict[str, Callable[[Record], Drawing | None]] = {
    "agreement": agreement,
    "token_mixing": image_figures.token_mixing,
}
"""Name -> picture of the whole model, None where it has nothing of the kind."""


def draw(record: Record) -> Iterator[tuple[str, Drawing]]:
    """Yield each picture of a record, with a name that can be a file's: `classes-4.moe_s`, `load-STAGE-4.moe_s`."""
    makers: dict[str, Callable[[], Drawing | None]] = {}
    for layer in record.layers:
        makers |= {f"{name}-{layer.name}": partial(make, record, layer) for name, make in OF_LAYER.items()}
    makers |= {f"load-{one.stage}-{one.layer}": partial(load, one) for one in record.load}
    makers |= {name: partial(make, record) for name, make in OF_MODEL.items()}
    for name, make in makers.items():
        with rc_context(STYLE):
            drawing = make()
        if drawing is not None:
            yield name, drawing
