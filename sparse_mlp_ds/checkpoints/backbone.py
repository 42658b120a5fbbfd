"""Which of a checkpoint's tensors are the model's weights: never the optimizer's, which are not read."""

from typing import Any

from torch import Tensor

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.errors import UserError

BACKBONE = "backbone."


def done(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the entries of summary.json of the stages that were finished when it was written."""
    entries = checkpoint.progress.get("done")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def finished(checkpoint: Checkpoint) -> bool:
    """Say whether it is the last one of its stage."""
    return any(entry.get("name") == checkpoint.progress.get("stage") for entry in done(checkpoint))


def kind(checkpoint: Checkpoint, online: bool = False) -> str:
    """Return what the names of the model's weights begin with: `param`, or `momentum` for their average.

    At a stage's end that is what the stage hands over. Before it, the manifest still speaks of the stage before: an
    average is taken wherever there is one, except the momentum encoder of pretraining. online: always `param`.
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
    """Return the model's weights by the model's own names, and their shapes. Raises UserError if there are none."""
    prefix = f"{kind(checkpoint, online)}/{BACKBONE}"
    tensors = checkpoint.manifest["tensors"]
    found = {name.removeprefix(prefix): shape for name, shape in tensors.items() if name.startswith(prefix)}
    if not found:
        fix = "leave out --online" if online else "use a checkpoint of a stage that trains a model"
        raise UserError(f"{checkpoint.path}: holds no '{prefix}...'; {fix}")
    return found


def weights(checkpoint: Checkpoint, online: bool = False) -> dict[str, Tensor]:
    """Return the model's weights in float32, whole, by the model's own names. Raises UserError if one is not finite."""
    read, prefix = Reader(checkpoint), f"{kind(checkpoint, online)}/{BACKBONE}"
    tensors = {}
    for name in shapes(checkpoint, online):
        tensors[name] = read.whole(prefix + name)
        if not tensors[name].isfinite().all():
            raise UserError(f"{checkpoint.path}: '{prefix}{name}' holds NaN or infinity; use an earlier checkpoint")
    return tensors
