"""The config of a checkpoint's model, from the recipe in its manifest."""

from typing import Any

from pydantic import ValidationError

from sparse_mlp_ds.checkpoints import model_weights
from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.data.class_names import filled
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.hub.config import (
    AnyConfig,
    ModelConfig,
    Origin,
    StageSummary,
    TextConfig,
    TextRows,
    explain,
    figures,
)
from sparse_mlp_ds.models import history
from sparse_mlp_ds.models.text_spec import TextSpec

TASKS = {"mlm": "masked", "finetune_text": "classes", "finetune_span": "spans"}
"""Kind of a stage on text -> what its model does."""


def describe(
    checkpoint: Checkpoint, shapes: dict[str, list[int]], evaluations: list[dict[str, Any]], averaged: bool
) -> AnyConfig:
    """Return the config of the model of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        shapes: Name -> shape of the model's weights.
        evaluations: Entries of summary.json of the evaluate stages that came after the checkpoint.
        averaged: Whether the weights are the moving average of the trained ones.

    Raises UserError.
    """
    manifest, progress = checkpoint.manifest, checkpoint.progress
    recipe = manifest["recipe"]
    try:
        section, data, stages = (_mapping(recipe, key) for key in ("model", "data", "stages"))
        code = _mapping(manifest, "code") if manifest.get("code") is not None else {}
        origin = {
            "version": manifest.get("version"),
            "recipe": recipe.get("name"),
            "stage": progress.get("stage"),
            "finished": model_weights.finished(checkpoint),
            "step": progress.get("step"),
            "commit": code.get("commit"),
            "dirty": code.get("dirty"),
            "data": progress.get("data") or None,
            "weights": "averaged" if averaged else "online",
            "stages": tuple(_summary(entry, stages) for entry in [*model_weights.done(checkpoint), *evaluations]),
        }
        spec = model_spec(history.completed(section))
        config = {
            "name": section.get("name"),
            "spec": spec,
            "moe": MoE.model_validate(_mapping(recipe, "moe") | {"ep_size": "auto"}),
            "origin": Origin.model_validate(origin),
        }
        if isinstance(spec, TextSpec):
            return TextConfig.model_validate(config | _of_text(checkpoint, shapes, stages))
        pixels = Pixels.model_validate({key: data[key] for key in Pixels.model_fields if key in data})
        return ModelConfig.model_validate(config | {"classes": class_names(checkpoint, shapes), "data": pixels})
    except ValidationError as error:
        raise UserError(f"{checkpoint.path}: manifest.json: {explain(error)}; use another checkpoint") from None
    except (ValueError, TypeError) as error:
        reason = ascii(one_line(error))[1:-1]
        raise UserError(f"{checkpoint.path}: manifest.json: {reason}; use another checkpoint") from None


def class_names(checkpoint: Checkpoint, shapes: dict[str, list[int]]) -> tuple[str, ...]:
    """Return one class name for each output of the head; where a manifest names fewer, their numbers.

    shapes: Name -> shape of the model's weights.
    """
    if task(checkpoint, shapes) == "spans":
        return ()
    names = checkpoint.manifest.get("classes")
    known = [str(name) for name in names] if isinstance(names, list) else []
    return tuple(filled(known, (shapes.get("head.weight") or [0])[0]))


def _of_text(checkpoint: Checkpoint, shapes: dict[str, list[int]], stages: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a config that only a model of text has. stages: the recipe's section."""
    rows = checkpoint.manifest.get("text")
    if isinstance(rows, dict):
        rows = TextRows.model_validate({key: rows.get(key) for key in TextRows.model_fields})
    return {"task": task(checkpoint, shapes), "classes": class_names(checkpoint, shapes), "text": rows}


def task(checkpoint: Checkpoint, shapes: dict[str, list[int]]) -> str:
    """Return what a model does, by the stage that it comes from and the weights that it has.

    shapes: Name -> shape of the model's weights. One of images has the task "classes".
    """
    stages = checkpoint.manifest["recipe"].get("stages")
    stage = stages.get(str(checkpoint.progress.get("stage"))) if isinstance(stages, dict) else None
    learnt = TASKS.get(str(stage.get("kind")), "classes") if isinstance(stage, dict) else "classes"
    if learnt == "masked" and model_weights.OUTPUT_BIAS in shapes:
        return learnt
    return learnt if learnt != "masked" and "head.weight" in shapes else "features"


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(tree.get(key), dict):
        raise ValueError(f"there is no section '{key}'")
    return tree[key]


def _summary(entry: dict[str, Any], stages: dict[str, Any]) -> StageSummary:
    """Return the summary of a finished stage. entry: of summary.json. stages: the recipe's section."""
    section = stages.get(str(entry.get("name")))
    section = section if isinstance(section, dict) else {}
    optimizer = section.get("optimizer")
    summary = {
        "name": entry.get("name"),
        "kind": entry.get("kind"),
        "steps": entry.get("steps"),
        "epochs": section.get("epochs"),
        "batch_size": section.get("batch_size"),
        "optimizer": optimizer.get("name") if isinstance(optimizer, dict) else None,
        "metrics": figures(entry.get("metrics")),
    }
    return StageSummary.model_validate(summary)
