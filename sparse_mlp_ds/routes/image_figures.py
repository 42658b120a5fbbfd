"""Pictures on images and on their grid of patches: top images, receptive fields, each patch's expert, weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm

from sparse_mlp_ds.routes import pictures
from sparse_mlp_ds.routes.count_figures import heading
from sparse_mlp_ds.routes.drawing import COLOURS, WEIGHTS, WIDTH, Drawing, around, empty
from sparse_mlp_ds.routes.record import LayerRoutes, Record, TokenMixing
from sparse_mlp_ds.routes.weights import UNITS

COLUMNS = 8
"""Panels side by side."""
ROWS = 24
"""Most rows of panels in one figure; experts beyond them are in the data alone."""
_PAIRS = 4  # images side by side, with their patches' experts below
_SMALL = 10  # most patches along a side for which every patch's expert is written into it


def top_images(record: Record, layer: LayerRoutes) -> Drawing:
    """Draw the images that send each expert most of their items, a row for each expert."""
    shown = layer.top_images[:ROWS]
    columns = max((len(one) for one in shown), default=0) or 1
    title = f"Images that send an expert most\n{heading(layer)}{_rest(layer, len(shown))}"
    drawing = Drawing(title, 0.5 + len(shown) * 1.25 * (WIDTH - 0.8) / max(columns, 5))
    axes = drawing.axes[0, 0]
    pixels = {number: np.asarray(pictures.image(picture)) for number, picture in record.pictures.items()}
    side = len(next(iter(pixels.values()))) if pixels else 1
    high, wide = round(1.4 * side), round(1.12 * side)  # of a cell, whose caption is above the image
    page = np.full((len(shown) * high, columns * wide, 3), 255, np.uint8)
    for row, found in enumerate(shown):
        for column, one in enumerate(found):
            y, x = (row + 1) * high - side, column * wide
            page[y : y + side, x : x + side] = pixels[one.image]
            name = record.classes[record.pictures[one.image].label]
            caption = f"{name[:14]}\n{one.items} items"
            axes.text(x + side / 2, y - 1, caption, ha="center", va="bottom", fontsize=7, linespacing=1.0)
        if not found:
            axes.text(0, (row + 0.7) * high, "got no item", va="center")
    axes.imshow(page, interpolation="none")
    empty(axes)
    axes.set_yticks([(row + 1) * high - side / 2 for row in range(len(shown))])
    axes.set_yticklabels([f"expert {expert}" for expert in range(len(shown))])
    axes.tick_params(length=0)
    return drawing


def fields(record: Record, layer: LayerRoutes) -> Drawing:
    """Draw how much each expert depends on each patch of the image."""
    shown = np.array(layer.field[: ROWS * COLUMNS]).reshape(-1, record.side, record.side)
    meaning = "weights of its hidden units" if layer.kind == "moe_s" else "patches that it gets"
    how = ", through the re-represent layer" if layer.rerepresented else ""
    drawing, panels = _panels(f"Receptive field of each expert: {meaning}{how}\n{heading(layer)}", len(shown))
    limits = around(1.0, shown, least=0.1)
    for expert, (axes, field) in enumerate(zip(panels, shown, strict=False)):
        axes.imshow(field, cmap=COLOURS, norm=limits)
        axes.set_title(f"expert {expert}", fontsize=7, pad=2)
    scale = ScalarMappable(limits, COLOURS)
    drawing.figure.colorbar(scale, ax=drawing.axes, label="over its mean", pad=0.02, aspect=12)
    return drawing


def patches(record: Record, layer: LayerRoutes) -> Drawing | None:
    """Draw the first expert of each patch over real images; None where patches are not routed."""
    shown = list(layer.expert_of_patch.items())
    if not shown:
        return None
    columns = min(_PAIRS, len(shown))
    rows = -(-len(shown) // columns)
    side = (WIDTH - 1) / _PAIRS
    title = f"First expert of each patch\n{heading(layer)}"
    drawing = Drawing(title, 0.6 + rows * (2 * side + 0.2), 2 * rows, columns)
    palette = colormaps[COLOURS].resampled(layer.experts)
    for axes in drawing.axes.flat:
        empty(axes)
    places = zip(drawing.axes[0::2].flat, drawing.axes[1::2].flat, strict=True)
    for (above, below), (number, experts) in zip(places, shown, strict=False):
        picture = record.pictures[number]
        image = pictures.image(picture)
        above.imshow(image, interpolation="none")
        above.set_title(record.classes[picture.label][:14], fontsize=7, pad=2)
        _overlay(below, np.asarray(image.convert("L")), np.array(experts).reshape(record.side, -1), layer.experts)
    scale = ScalarMappable(BoundaryNorm(np.arange(layer.experts + 1) - 0.5, layer.experts), palette)
    ticks = range(0, layer.experts, max(1, layer.experts // 16))
    drawing.figure.colorbar(scale, ax=drawing.axes, label="expert", pad=0.02, aspect=20, ticks=ticks)
    return drawing


def token_mixing(record: Record) -> Drawing | None:
    """Draw the weights that mix patches in dense blocks, as MLP-Mixer's figure 5; None without any."""
    dense = [one for one in record.token_mixing if one.name.startswith("block ")]
    return _weights("Token-mixing weights of the dense blocks: first layer", record.side, dense)


def token_mixing_of_experts(record: Record, layer: LayerRoutes) -> Drawing | None:
    """Draw the weights with which experts mix patches, on the image's patches; None for experts that do not."""
    experts = [one for one in record.token_mixing if one.name.startswith(f"{layer.name} ")]
    return _weights(f"Token-mixing weights of the experts: first layer\n{heading(layer)}", record.side, experts)


def _weights(title: str, side: int, rows: Sequence[TokenMixing]) -> Drawing | None:
    """Draw hidden units' weights, a row for each block or expert; every row has its own scale."""
    rows = rows[:ROWS]
    if not rows:
        return None
    columns = max(len(one.units) for one in rows)
    about = "the hidden units with the largest norms; black negative, grey 0, white positive, each row to its largest"
    page = np.full((len(rows) * (side + 1) - 1, columns * (side + 1) - 1), np.nan)
    for row, one in enumerate(rows):
        most = max(abs(value) for unit in one.units for value in unit) or 1.0
        for column, unit in enumerate(one.units):
            y, x = row * (side + 1), column * (side + 1)
            page[y : y + side, x : x + side] = np.array(unit).reshape(side, side) / most
    drawing = Drawing(f"{title}\n{about}", 0.7 + len(rows) * (WIDTH - 0.8) / max(columns, UNITS))
    axes = drawing.axes[0, 0]
    axes.imshow(page, cmap=WEIGHTS, vmin=-1, vmax=1)
    empty(axes)
    axes.set_yticks([row * (side + 1) + (side - 1) / 2 for row in range(len(rows))])
    axes.set_yticklabels([one.name.rpartition("moe_s ")[2] for one in rows])
    axes.tick_params(length=0)
    return drawing


def _overlay(axes: Axes, image: np.ndarray[Any, Any], experts: np.ndarray[Any, Any], number: int) -> None:
    """Draw an image [H, W] in grey under the colours of its patches' experts [rows, columns].

    number: of experts that there are. A patch that no expert took stays without colour.
    """
    height, width = image.shape
    axes.set_rasterized(True)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    colours = colormaps[COLOURS].resampled(number)(experts.clip(0))
    colours[..., 3] = np.where(experts >= 0, 0.6, 0.0)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(colours, extent=extent)
    if len(experts) > _SMALL:
        return
    for (row, column), expert in np.ndenumerate(experts):
        if expert >= 0:
            x, y = (column + 0.5) * width / len(experts) - 0.5, (row + 0.5) * height / len(experts) - 0.5
            colour = "black" if expert > 0.55 * (number - 1) else "white"
            axes.text(x, y, str(expert), ha="center", va="center", color=colour, fontsize=6)


def _panels(title: str, number: int) -> tuple[Drawing, list[Axes]]:
    """Return a drawing with a panel for each of `number` maps, and these panels."""
    columns = min(COLUMNS, max(number, 2))
    rows = -(-number // columns)
    side = (WIDTH - 1) / max(columns, 4)
    drawing = Drawing(title, 0.7 + rows * (side + 0.2), rows, columns)
    for axes in drawing.axes.flat:
        empty(axes)
    return drawing, list(drawing.axes.flat)


def _rest(layer: LayerRoutes, shown: int) -> str:
    return f" ({shown} shown)" if layer.experts > shown else ""
