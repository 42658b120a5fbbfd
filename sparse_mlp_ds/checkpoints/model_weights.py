"""The model's weights in a checkpoint, apart from the optimizer's tensors, which are not read."""

from typing import Any

from torch import Tensor

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.errors import UserError

BACKBONE = "backbone."
"""What the model's parameter names begin with in a checkpoint."""


OUTPUT_BIAS = "output_bias"
"""What the bias [V] of a masked language model's output layer is called among the model's weights; in a checkpoint it
stands beside the backbone."""
_STORED = {"bias": OUTPUT_BIAS}
"""Weights outside the backbone that belong to the model: name in a checkpoint -> name among the model's weights."""


def done(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the summary.json entries of the stages that were finished when the checkpoint was written."""
    entries = checkpoint.progress.get("done")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def finished(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is the last one of its stage."""
    return any(entry.get("name") == checkpoint.progress.get("stage") for entry in done(checkpoint))


def kind(checkpoint: Checkpoint, online: bool = False) -> str:
    """Return the first part of the names of the model's weights: `param`, or `momentum` for their moving average.

    At a stage's end, it is the part of the weights that the next stage starts from. In the middle of a stage, it is the
    moving average where there is one, but never the momentum encoder of pretraining.

    online: return `param` in any case: the weights that are trained.
    """
    if online:
        return "param"
    if finished(checkpoint):
        average = checkpoint.progress.get("hands_over_average") is True
    else:
        stages = checkpoint.manifest["recipe"].get("stages")
        stage = stages.get(str(checkpoint.progress.get("stage"))) if isinstance(stages, dict) else None
        average = not (isinstance(stage, dict) and stage.get("kind") == "pretrain") and any(
            name.startswith(f"momentum/{BACKBONE}") for name in checkpoint.manifest["tensors"]
        )
    return "momentum" if average else "param"


def shapes(checkpoint: Checkpoint, online: bool = False) -> dict[str, list[int]]:
    """Return the shapes of the model's weights, by the model's own parameter names.

    online: of the weights that are trained, not of their moving average. Raises UserError if there are none.
    """
    tensors = checkpoint.manifest["tensors"]
    return {own: tensors[name] for own, name in _names(checkpoint, online).items()}


def weights(checkpoint: Checkpoint, online: bool = False) -> dict[str, Tensor]:
    """Return the model's weights in float32, by the model's own parameter names.

    online: the weights that are trained, not their moving average. Raises UserError if one is missing or not finite.
    """
    read = Reader(checkpoint)
    tensors = {}
    for own, name in _names(checkpoint, online).items():
        tensors[own] = read.whole(name)
        if not tensors[own].isfinite().all():
            raise UserError(f"{checkpoint.path}: '{name}' holds NaN or infinity; use an earlier checkpoint")
    return tensors


def _names(checkpoint: Checkpoint, online: bool) -> dict[str, str]:
    """Return the names of the model's weights: the model's own -> the one in the checkpoint. Raises UserError."""
    part = kind(checkpoint, online)
    prefix, tensors = f"{part}/{BACKBONE}", checkpoint.manifest["tensors"]
    found = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    if not found:
        fix = "leave out --online" if online else "use a checkpoint of a stage that trains a model"
        raise UserError(f"{checkpoint.path}: holds no '{prefix}...'; {fix}")
    beside = {own: f"{part}/{name}" for name, own in _STORED.items() if f"{part}/{name}" in tensors}
    return found | beside
