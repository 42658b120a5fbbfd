"""Pictures of counts: what classes and items go where, how sure the gate is, how load and layers develop."""

from typing import Any

import numpy as np
from matplotlib.colors import Normalize

from sparse_mlp_ds.routes.drawing import (
    MOST_NAMES,
    Drawing,
    around,
    heat,
    name_experts,
    name_rows,
    write_values,
)
from sparse_mlp_ds.routes.record import LayerRoutes, Load, Record

ITEMS = {"moe_s": "channel", "moe_c": "patch"}
"""Mixing type -> what its items are."""


def heading(layer: LayerRoutes) -> str:
    """Return a layer's name and sizes for titles."""
    what = ITEMS[layer.kind] if layer.kind == "moe_s" or layer.on_grid else "re-represented patch"
    plural = f"{what}es" if what.endswith("patch") else f"{what}s"
    return f"{layer.name}: {len(layer.by_item)} {plural} of each image to {layer.top_k} of {layer.experts} experts"


def classes(record: Record, layer: LayerRoutes) -> Drawing:
    """Draw which experts each class's items go to: class x expert."""
    share = _shares(np.array(layer.by_class, dtype=float))
    seen = [number for number in range(len(share)) if not np.isnan(share[number]).all()]
    names = [record.classes[number] for number in seen]
    share = share[seen]
    few = len(seen) <= MOST_NAMES
    if not few:
        share = share[np.argsort(share.argmax(axis=1), kind="stable")]
    drawing = Drawing(f"Experts by class\n{heading(layer)}", 1.3 + (0.22 * len(seen) if few else 5.5))
    axes = drawing.axes[0, 0]
    even = 100 / layer.experts
    heat(drawing, axes, share, "share of the class's items, %", around(even, share, least=0.1 * even))
    name_rows(axes, names, "class, sorted by its most frequent expert")
    _expert_axis(axes.xaxis, layer.experts)
    if few and layer.experts <= 16:
        write_values(axes, share, "{:.1f}", even)
    return drawing


def items(record: Record, layer: LayerRoutes) -> Drawing:
    """Draw which experts each item goes to: item x expert."""
    share = 100 * np.array(layer.by_item, dtype=float) / max(record.images, 1)  # [T, E]
    what = ITEMS[layer.kind]
    label = f"{what}, row by row"
    if not layer.on_grid:
        share = share[np.lexsort((-share.max(axis=1), share.argmax(axis=1)))]
        label = f"{what}, sorted by its most frequent expert"
    drawing = Drawing(f"Experts by {what}\n{heading(layer)}", 1.5 + 0.2 * min(layer.experts, 24))
    axes = drawing.axes[0, 0]
    heat(drawing, axes, share.T, "share of images, %", Normalize(0, 100))
    axes.set_xlabel(label)
    _expert_axis(axes.yaxis, layer.experts)
    return drawing


def entropy(record: Record, layer: LayerRoutes) -> Drawing:
    """Draw how undecided the gate is: over all items, and for each of them."""
    drawing = Drawing(f"Gate entropy\n{heading(layer)}", 2.6, columns=2)
    over_all, by_item = drawing.axes[0]
    counts = np.array(layer.entropy_histogram, dtype=float)
    edges = np.linspace(0, 1, len(counts) + 1)
    over_all.bar(edges[:-1], 100 * counts / max(counts.sum(), 1), width=edges[1], align="edge", color="#33486b")
    over_all.set_xlim(0, 1)
    over_all.set_title("all items of all images", loc="left")
    over_all.set_xlabel("entropy / log E  (0 sure, 1 undecided)")
    over_all.set_ylabel("share of items, %")
    mean = np.array(layer.entropy_by_item)
    if layer.on_grid:
        heat(drawing, by_item, mean.reshape(record.side, record.side), "entropy / log E", Normalize(0, 1))
        by_item.set_aspect("equal")
        by_item.set_title("mean over images of each patch", loc="left")
        by_item.set_xlabel("column of patches")
        by_item.set_ylabel("row of patches")
    else:
        by_item.plot(np.sort(mean), color="#33486b")
        by_item.set_ylim(0, 1.02)
        by_item.set_title(f"mean over images of each {ITEMS[layer.kind]}", loc="left")
        by_item.set_xlabel(f"{ITEMS[layer.kind]}, from the surest to the least sure")
        by_item.set_ylabel("entropy / log E")
        by_item.grid(color="#dddddd")
    return drawing


def load(one: Load) -> Drawing:
    """Draw the load of each expert over the steps of a stage."""
    share = _shares(np.array(one.items, dtype=float)).T  # [E, N]
    experts, stretches = share.shape
    even = 100 / experts
    title = (
        f"Load of each expert during stage {one.stage}\n{one.layer}: {experts} experts, an even share is {even:.3g} %"
    )
    drawing = Drawing(title, 1.5 + 0.2 * min(experts, 24))
    axes = drawing.axes[0, 0]
    heat(drawing, axes, share, "share of choices, %", around(even, share, least=0.1 * even))
    places = np.unique(np.linspace(0, stretches - 1, min(7, stretches)).round().astype(int))
    axes.set_xticks(places, [str(one.steps[place]) for place in places])
    axes.set_xlabel("optimizer step of the run, at the end of each record")
    _expert_axis(axes.yaxis, experts)
    return drawing


def agreement(record: Record) -> Drawing | None:
    """Draw how much each pair of layers agrees, by images and by items; None for a single layer."""
    names = [layer.name for layer in record.layers]
    if len(names) < 2:
        return None
    tables = {
        "same images load experts alike\n(linear CKA)": record.agreement.images,
        "same item, same expert\n(normalised mutual information)": record.agreement.items,
    }
    size = min(0.35 * len(names), 3.0)
    drawing = Drawing("Agreement between MoE layers", 1.9 + size, columns=2)
    for axes, (title, table) in zip(drawing.axes[0], tables.items(), strict=True):
        values = np.array(table, dtype=float)
        heat(drawing, axes, values, "0 none, 1 full", Normalize(0, 1))
        axes.set_title(title, loc="left")
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
        axes.set_facecolor("white")
        if len(names) <= 8:
            write_values(axes, values, "{:.2f}", 0.55)
        for row, column in zip(*np.nonzero(np.isnan(values)), strict=True):
            if len(names) <= 8:
                axes.text(column, row, "-", ha="center", va="center", color="black")
    return drawing


def _shares(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return counts [N, M] as percent of their row; NaN for a row without any."""
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def _expert_axis(axis: Any, experts: int) -> None:
    name_experts(axis, experts)
    axis.set_label_text("expert")
