"""The network of one stage of a run: its newest checkpoint, and the best head of a probe."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_mlp_ds.checkpoints import model_weights
from sparse_mlp_ds.checkpoints.manifest import Checkpoint, checkpoints_of, numbered, open_checkpoint, read_manifest
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.errors import UserError, did_you_mean


def find_stage(path: Path, stage: str) -> tuple[Checkpoint, list[str]]:
    """Open the newest complete checkpoint that a stage has written.

    Args:
        path: Folder of a run, or of a checkpoint, which must be of that stage.
        stage: Name of the stage in the recipe.

    Returns also a line for each newer checkpoint of the stage that is damaged. Raises UserError if there is no complete
    one.
    """
    folder = checkpoints_of(path)
    passed_over: list[str] = []
    manifests: list[dict[str, Any]] = []
    for candidate in [path] if folder is None else numbered(folder):
        try:
            manifests.append(read_manifest(candidate))
            if manifests[-1]["progress"].get("stage") == stage:
                return open_checkpoint(candidate), passed_over
        except UserError as error:
            passed_over.append(str(error))
    raise UserError(f"{path}: {_why_not(manifests, stage, passed_over)}")


def _why_not(manifests: list[dict[str, Any]], stage: str, damaged: list[str]) -> str:
    """Return why none of the checkpoints, of which these manifests can be read, is one of the stage."""
    stages = manifests[0]["recipe"].get("stages") if manifests else None
    if not isinstance(stages, dict):
        return f"no complete checkpoint{''.join(f' ({line})' for line in damaged[:1])}; train it further"
    if stage not in stages:
        return f"--stage {stage} is no stage of its recipe; {did_you_mean(stage, map(str, stages))}"
    if isinstance(stages[stage], dict) and stages[stage].get("kind") == "evaluate":
        return f"--stage {stage} trains nothing; name the stage whose network it evaluates"
    there = sorted({str(manifest["progress"].get("stage")) for manifest in manifests} - {stage})
    others = f", only of {', '.join(there)}" if there else ""
    why = f" ({damaged[0]})" if damaged else ""
    return f"no complete checkpoint of stage {stage}{others}{why}; it has not begun, or they were removed"


def is_probe(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was written by a probe."""
    return _section(checkpoint).get("kind") == "probe"


def probe_head(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the best head of a finished probe, by held-out top-1, as `head.weight` and `head.bias` of its model.

    Raises UserError if the probe is not finished, so that its heads were not measured.
    """
    number = _best_head(checkpoint)
    read = Reader(checkpoint)
    return {f"head.{part}": read.whole(f"param/heads.{number}.{part}") for part in ("weight", "bias")}


def _best_head(checkpoint: Checkpoint) -> int:
    """Return the number of the head whose learning rate reached the highest top-1, the first of several."""
    name = checkpoint.progress.get("stage")
    entry = next((entry for entry in model_weights.done(checkpoint) if entry.get("name") == name), None)
    if entry is None:
        raise UserError(f"{checkpoint.path}: stage {name} is not finished, so its best head is not known; resume it")
    try:
        section, metrics = _section(checkpoint), entry["metrics"]
        rates = [float(scale) * float(section["optimizer"]["base_lr"]) for scale in section["rates"]]
        reached = [float(metrics[f"top1_lr_{rate:g}"]) for rate in rates]  # as `train.linear_probe` names them
        return max(range(len(reached)), key=reached.__getitem__)
    except (KeyError, TypeError, ValueError):
        reason = "does not say what each head of the probe reached"
        raise UserError(f"{checkpoint.path}: manifest.json {reason}; use another checkpoint") from None


def _section(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the section of the checkpoint's stage in its recipe; empty if there is none."""
    stages = checkpoint.manifest["recipe"].get("stages")
    section = stages.get(str(checkpoint.progress.get("stage"))) if isinstance(stages, dict) else None
    return section if isinstance(section, dict) else {}
