"""A summary of a checkpoint: norms of tensors and experts, and the manifest's entries about the run."""

import math
import re
from typing import Any

from sparse_mlp_ds.checkpoints import model_weights
from sparse_mlp_ds.checkpoints.manifest import Checkpoint, is_count
from sparse_mlp_ds.checkpoints.reader import Reader

_EXPERT = re.compile(r"(?:backbone\.)?(.+)\.experts\.([0-9]{1,9})\..+")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a summary of a checkpoint as values for a table or JSON. Reads every tensor, one at a time.

    Norms are L2 norms; None stands for a norm that is not finite. `tensors` holds each parameter's shape and norm.
    `others` sums up all other tensors by kind: the optimizer's moments, and the moving average or momentum network
    (`momentum`). `experts` lists, layer by layer, each expert's norm over its parameters and the number of items that
    were routed to it, None where the run did not count them. Raises UserError.
    """
    read = Reader(checkpoint)
    tensors: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    squares: dict[str, dict[int, float]] = {}  # by layer and expert
    for name, shape in read.shapes.items():
        kind, _, parameter = name.partition("/")
        square = float(read.whole(name).double().square().sum())
        if kind == "param":
            tensors[parameter] = {"shape": shape, "norm": _norm(square)}
            if match := _EXPERT.fullmatch(parameter):
                layer, expert = squares.setdefault(match[1], {}), int(match[2])
                layer[expert] = layer.get(expert, 0.0) + square
        else:
            sums = others.setdefault(kind, {"tensors": 0, "elements": 0, "square": 0.0})
            sums["tensors"] += 1
            sums["elements"] += math.prod(shape)
            sums["square"] += square
    manifest, progress = checkpoint.manifest, checkpoint.progress
    return {
        "path": str(checkpoint.path),
        "version": manifest.get("version"),
        "recipe": manifest["recipe"].get("name"),
        "topology": manifest.get("topology"),
        "progress": {key: progress.get(key) for key in ("stage", "stage_step", "step", "seconds")}
        | {"finished": [entry.get("name") for entry in model_weights.done(checkpoint)]},
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "tensors": tensors,
        "others": {kind: sums | {"norm": _norm(sums.pop("square"))} for kind, sums in others.items()},
        "experts": {layer: _experts(layer, norms, progress) for layer, norms in squares.items()},
    }


def _experts(layer: str, squares: dict[int, float], progress: dict[str, Any]) -> list[dict[str, Any]]:
    items = _items(layer, progress)
    known = len(items) > max(squares)
    return [
        {"expert": number, "norm": _norm(squares[number]), "items": items[number] if known else None}
        for number in sorted(squares)
    ]


def _items(layer: str, progress: dict[str, Any]) -> list[int]:
    """Return how many items were routed to each expert of a layer; an empty list if the run did not count them."""
    counted = progress.get("expert_items")
    counted = counted if isinstance(counted, dict) else {}
    # A layer has its module's name, `blocks.3.moe_s`, or its name in the log, `3.moe_s`.
    counts = next((counted[name] for name in (layer, layer.removeprefix("blocks.")) if name in counted), None)
    return counts if isinstance(counts, list) and all(is_count(count) for count in counts) else []


def _norm(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None
