"""A model from wherever it lies: an export's folder, a run's, or a checkpoint's."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sparse_mlp_ds.checkpoints import backbone
from sparse_mlp_ds.checkpoints.manifest import Checkpoint, checkpoints_of, find, is_count
from sparse_mlp_ds.data.sections import Pixels
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.check import check
from sparse_mlp_ds.hub.config import LARGEST, ModelConfig, Origin, Stage, explain, figures
from sparse_mlp_ds.hub.config import read as read_config
from sparse_mlp_ds.recipe import MoE, model_spec
from sparse_mlp_ds.weights import formats, places


@dataclass(frozen=True)
class Opened:
    """A model that was found and checked."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """All of the model's, float32, by its own names."""
    remarks: tuple[str, ...] = ()
    """What was passed over on the way."""


def open_model(path: Path, online: bool = False) -> Opened:
    """Read a model. online: of a checkpoint, the weights themselves where their average would be taken.

    Raises UserError.
    """
    kind = places.kind(path)
    if kind == "file":
        raise UserError(
            f"{path}: a file of weights does not say what model they are of; "
            "make a folder of it with `sparse-mlp-ds import FILE OUT --model NAME`"
        )
    if kind == "checkpoint":
        return _from_checkpoint(path, online)
    if online:
        raise UserError(f"{path}: an export has one set of weights; leave out --online, or give the run's folder")
    return read_files(places.exported(path, places.CONFIG), places.exported(path, places.WEIGHTS))


def read_files(config_file: Path, weights_file: Path) -> Opened:
    """Read an export's two files. Raises UserError unless they belong together."""
    config, weights = read_config(config_file), formats.read(weights_file)
    check(config, {name: tensor.shape for name, tensor in weights.items()}, weights_file)
    return Opened(config, weights)


def _from_checkpoint(path: Path, online: bool) -> Opened:
    checkpoint, passed_over = find(path)
    shapes = backbone.shapes(checkpoint, online)
    config = _describe(checkpoint, shapes, _evaluated(path, checkpoint), backbone.kind(checkpoint, online))
    check(config, shapes, checkpoint.path)
    return Opened(config, backbone.weights(checkpoint, online), tuple(passed_over))


def _describe(
    checkpoint: Checkpoint, shapes: dict[str, list[int]], later: list[dict[str, Any]], kind: str
) -> ModelConfig:
    """Return the config of a checkpoint's model, from the recipe in its manifest."""
    manifest, progress = checkpoint.manifest, checkpoint.progress
    recipe = manifest["recipe"]
    try:
        section, data, stages = (_mapping(recipe, key) for key in ("model", "data", "stages"))
        return ModelConfig(
            name=section.get("name"),
            spec=model_spec(section),
            moe=MoE.model_validate(_mapping(recipe, "moe") | {"ep_size": "auto"}),
            classes=_classes(manifest.get("classes"), (shapes.get("head.weight") or [0])[0]),
            data=Pixels.model_validate({key: data[key] for key in Pixels.model_fields if key in data}),
            origin=Origin(
                version=manifest.get("version"),
                recipe=recipe.get("name"),
                stage=progress.get("stage"),
                finished=backbone.finished(checkpoint),
                step=progress.get("step"),
                weights="averaged" if kind == "momentum" else "online",
                stages=tuple(_stage(entry, stages) for entry in [*backbone.done(checkpoint), *later]),
            ),
        )
    except ValidationError as error:
        raise UserError(f"{checkpoint.path}: manifest.json: {explain(error)}; use another checkpoint") from None
    except (ValueError, TypeError) as error:
        said = ascii(" ".join(str(error).split()))[1:-1]
        raise UserError(f"{checkpoint.path}: manifest.json: {said}; use another checkpoint") from None


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(tree.get(key), dict):
        raise ValueError(f"the recipe has no section '{key}'")
    return tree[key]


def _stage(entry: dict[str, Any], stages: dict[str, Any]) -> Stage:
    """Return a stage of summary.json in brief, with what the recipe says of it."""
    said = stages.get(entry.get("name"))
    said = said if isinstance(said, dict) else {}
    optimizer = said.get("optimizer")
    return Stage(
        name=entry.get("name"),
        kind=entry.get("kind"),
        steps=entry.get("steps"),
        epochs=said.get("epochs"),
        batch_size=said.get("batch_size"),
        optimizer=optimizer.get("name") if isinstance(optimizer, dict) else None,
        metrics=figures(entry.get("metrics")),
    )


def _classes(names: Any, count: int) -> tuple[str, ...]:
    """Return one name for each of the head's outputs: the data set may have named fewer, or more."""
    known = [str(name) for name in names] if isinstance(names, list) else []
    return tuple((known + [str(number) for number in range(len(known), count)])[:count])


def _evaluated(path: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the evaluate stages that a run went through after its checkpoint, from summary.json."""
    folder, done = checkpoints_of(path), backbone.done(checkpoint)
    try:
        if folder is None or (path / "summary.json").stat().st_size > LARGEST:
            return []
        entries = json.loads((path / "summary.json").read_text())["stages"]
        later = entries[len(done) :]
        belongs = entries[: len(done)] == done and all(
            entry["kind"] == "evaluate" and is_count(entry["steps"]) for entry in later
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # a run that was stopped before its first stage ended has none
    return later if belongs and done else []
