"""What a checkpoint holds, in figures: norms of tensors and experts, and what its manifest says of the run."""

import math
import re
from typing import Any

from sparse_mlp_ds.checkpoints import backbone
from sparse_mlp_ds.checkpoints.manifest import Checkpoint, is_count
from sparse_mlp_ds.checkpoints.reader import Reader

_EXPERT = re.compile(r"(?:backbone\.)?(.+)\.experts\.([0-9]{1,9})\..+")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a summary of plain values, for a table or JSON. Norms are L2; None stands for one that is not finite.

    `tensors`: every parameter. `others`: all else by kind (moments, what stands beside the engine), summed up.
    `experts`: by layer, for each the norm of its parameters and, where the run counted them, the items that chose it.
    Reads every tensor, one at a time. Raises UserError.
    """
    read, tensors, others, squares = Reader(checkpoint), {}, {}, {}
    for name, shape in read.shapes.items():
        kind, _, parameter = name.partition("/")
        square = float(read.whole(name).double().square().sum())
        if kind == "param":
            tensors[parameter] = {"shape": shape, "norm": _norm(square)}
            if found := _EXPERT.fullmatch(parameter):
                layer = squares.setdefault(found[1], {})
                layer[int(found[2])] = layer.get(int(found[2]), 0.0) + square
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
        | {"finished": [entry.get("name") for entry in backbone.done(checkpoint)]},
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
    """Return how many items chose each expert of a layer; nothing where the run did not count."""
    counted = progress.get("expert_items")
    counted = counted if isinstance(counted, dict) else {}
    # A layer goes by its module's name, `blocks.3.moe_s`, or by that in the log, `3.moe_s`.
    found = next((counted[name] for name in (layer, layer.removeprefix("blocks.")) if name in counted), None)
    return found if isinstance(found, list) and all(is_count(number) for number in found) else []


def _norm(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None
