"""Loads a model, its weights and its tokenizer from an export, a run or a checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints import model_weights
from sparse_mlp_ds.checkpoints.best import find_best
from sparse_mlp_ds.checkpoints.manifest import (
    Checkpoint,
    checkpoints_of,
    find,
    is_count,
    newest_readable,
    read_manifest,
)
from sparse_mlp_ds.data.class_names import ClassList, all_numbers
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.config import LARGEST, AnyConfig, TextConfig, TextRows
from sparse_mlp_ds.hub.config import read as read_config
from sparse_mlp_ds.hub.describe import class_names, describe, task
from sparse_mlp_ds.hub.stages import find_stage, is_probe, probe_head
from sparse_mlp_ds.hub.tokenizer import read as read_tokenizer
from sparse_mlp_ds.hub.validate import check_tensors
from sparse_mlp_ds.models.spec import TransformerSpec
from sparse_mlp_ds.weights import formats, locate


@dataclass(frozen=True)
class LoadedModel:
    """A config and all weights of its model, which were checked to fit each other."""

    config: AnyConfig
    """The model as data."""
    weights: dict[str, Tensor]
    """All weights of the model in float32, under the model's own names."""
    tokenizer: bytes | None = None
    """Content of the tokenizer's file of a model of text; None where it is not known."""
    remarks: tuple[str, ...] = ()
    """What the user should know: one line for each newer checkpoint of the run that is damaged and was not used, and
    one for class names that may not be the training images'."""


def load_model(
    path: Path, online: bool = False, best: bool = False, stage: str | None = None, tokenizer: Path | None = None
) -> LoadedModel:
    """Load a model from the folder of an export, a run or a checkpoint.

    Args:
        path: The folder.
        online: Take the trained weights of a checkpoint, even where it has a moving average of them, which is the
            default.
        best: Take the checkpoint of a run's best validation instead of its newest one.
        stage: Take the newest checkpoint of the stage of this name; of a probe, its best head belongs to the model.
        tokenizer: The tokenizer's file of a run or checkpoint of text that has none beside it.

    Raises UserError.
    """
    kind = locate.kind(path)
    if kind == "file":
        raise UserError(
            f"{path}: a file of weights does not say which model they belong to; "
            "make a folder of it with `sparse-mlp-ds import FILE OUT --model NAME`"
        )
    if kind == "checkpoint":
        loaded = _load_checkpoint(path, online, best, stage, tokenizer)
        if tokenizer and not isinstance(loaded.config, TextConfig):
            raise UserError(f"{path}: a model of images has no tokenizer; leave out --tokenizer")
        return loaded
    if stage is not None:
        raise UserError(f"{path}: an export is of one stage; leave out --stage, or give the run's folder")
    if best:
        raise UserError(f"{path}: an export has one set of weights; leave out --best, or give the run's folder")
    if online:
        raise UserError(f"{path}: an export has one set of weights; leave out --online, or give the run's folder")
    if tokenizer:
        raise UserError(f"{path}: an export has its own tokenizer; leave out --tokenizer, or give the run's folder")
    return load_export(path)


def class_list(path: Path) -> ClassList:
    """Return the class names of the model at a path, whose weights are not read.

    path: A file of weights, which has no names; or the folder of an export, a run or a checkpoint. There are no names
    if the model has no head. Raises UserError.
    """
    kind = locate.kind(path)
    if kind == "file":
        return ClassList(str(path), ())
    if kind == "export":
        return ClassList(str(path), read_config(locate.export_file(path, locate.CONFIG)).classes)
    checkpoint = _newest(path)
    return ClassList(str(checkpoint.path), class_names(checkpoint, model_weights.shapes(checkpoint)))


def task_of(path: Path) -> str | None:
    """Return what the model at a path does: "masked", "classes", "spans" or "features"; None for a file of weights.

    Its weights are not read. Raises UserError.
    """
    kind = locate.kind(path)
    if kind == "file":
        return None
    if kind == "export":
        config = read_config(locate.export_file(path, locate.CONFIG))
        return config.task if isinstance(config, TextConfig) else "classes"
    checkpoint = _newest(path)
    return task(checkpoint, model_weights.shapes(checkpoint))


def _newest(path: Path) -> Checkpoint:
    """Return a run's newest complete checkpoint, or the one at the path."""
    folder = checkpoints_of(path)
    newest = newest_readable(folder) if folder else path
    if newest is None:
        raise UserError(f"{path}: a run without a complete checkpoint; train it further")
    return Checkpoint(newest, read_manifest(newest))


def load_export(folder: Path) -> LoadedModel:
    """Load a model from the files of an export. Raises UserError unless they belong together."""
    config = read_config(locate.export_file(folder, locate.CONFIG))
    weights_file = locate.export_file(folder, locate.WEIGHTS)
    weights = formats.read(weights_file)
    check_tensors(config, {name: tensor.shape for name, tensor in weights.items()}, weights_file)
    tokenizer = None
    if isinstance(config, TextConfig) and config.text:
        tokenizer = read_tokenizer(locate.export_file(folder, TOKENIZER), config.text.tokenizer)
    return LoadedModel(config, weights, tokenizer)


def _load_checkpoint(path: Path, online: bool, best: bool, stage: str | None, tokenizer: Path | None) -> LoadedModel:
    """Load a model from the folder of a checkpoint, or of a run, whose newest complete checkpoint is taken.

    best: take the run's best one instead. stage: take the newest one of this stage, and of a probe its best head, too.
    tokenizer: the tokenizer's file, if it is not beside the checkpoints.
    """
    if stage is not None:
        checkpoint, passed_over = find_stage(path, stage)
    else:
        checkpoint, passed_over = (find_best(path)[0], []) if best else find(path)
    head = probe_head(checkpoint) if stage is not None and is_probe(checkpoint) else {}
    shapes = model_weights.shapes(checkpoint, online)
    shapes |= {name: list(tensor.shape) for name, tensor in head.items()}
    averaged = model_weights.kind(checkpoint, online) == "momentum"
    config = describe(checkpoint, shapes, _evaluations(path, checkpoint), averaged)
    if head:
        config, head = _with_linear_head(config, head)
        shapes |= {name: list(tensor.shape) for name, tensor in head.items()}
    check_tensors(config, shapes, checkpoint.path)
    content = None
    if isinstance(config, TextConfig):
        config, content = _with_tokenizer(config, checkpoint, tokenizer)
    remarks = [f"passed over {line}" for line in passed_over] + _doubt(checkpoint, config)
    return LoadedModel(config, model_weights.weights(checkpoint, online) | head, content, tuple(remarks))


def _with_tokenizer(config: TextConfig, checkpoint: Checkpoint, given: Path | None) -> tuple[TextConfig, bytes | None]:
    """Return the config of a checkpoint's model and the content of its tokenizer's file, as far as it can be found.

    It is beside the checkpoint's files, or in the run folder, where a run has put it. given: the file, where neither is
    so.
    """
    folder = files.real(checkpoint.path)
    places = [folder, *([folder.parents[1]] if folder.parent.name == "checkpoints" else [])]
    file = given or next((path / TOKENIZER for path in places if (path / TOKENIZER).is_file()), None)
    if file is None:
        return config, None
    content = read_tokenizer(file, config.text.tokenizer if config.text else None)
    if config.text is None:  # written before manifests told what the rows are
        opened = Tokenizer(file, content)
        sizes = {"length": config.spec.length, "vocabulary": opened.vocabulary}
        rows = TextRows.model_validate(sizes | {"tokenizer": opened.sha256, "special": opened.special})
        if rows.vocabulary != config.spec.vocabulary:
            raise UserError(f"{file}: has {rows.vocabulary} tokens, the model {config.spec.vocabulary}; give its own")
        config = config.model_copy(update={"text": rows})
    return config, content


def _with_linear_head(config: AnyConfig, head: dict[str, Tensor]) -> tuple[AnyConfig, dict[str, Tensor]]:
    """Return config and head of a model whose logits are one linear layer of its features, as a probe's are.

    Where a model has two heads, whose logits are averaged, its features are the mean of what the heads get: equal heads
    give the same logits.
    """
    spec = config.spec
    if not isinstance(spec, TransformerSpec):
        return config, head
    if spec.distillation_token:
        head = head | {name.replace("head.", "head_dist."): tensor.clone() for name, tensor in head.items()}
    return config.model_copy(update={"spec": spec.model_copy(update={"representation": False})}), head


def _doubt(checkpoint: Checkpoint, config: AnyConfig) -> list[str]:
    """Return a remark on class names that version 0.1.0 wrote: it took those of the held-out images, unchecked."""
    if checkpoint.manifest.get("version") != "0.1.0" or not config.classes or all_numbers(config.classes):
        return []
    return [
        f"{checkpoint.path}: written by version 0.1.0, which took the class names from data.val and did not compare "
        f"them with data.train's; class 0 is {config.classes[0][:80]!a}: see if data.train's index.json says so too"
    ]


def _evaluations(path: Path, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the entries of summary.json of the evaluate stages that a run went through after its checkpoint.

    path: folder of the run; a folder that is no run has none. Nothing is returned if the summary does not belong to the
    checkpoint.
    """
    folder, done = checkpoints_of(path), model_weights.done(checkpoint)
    try:
        if folder is None or (path / "summary.json").stat().st_size > LARGEST:
            return []
        entries = json.loads((path / "summary.json").read_text(encoding="utf-8"))["stages"]
        later = entries[len(done) :]
        belongs = entries[: len(done)] == done and all(
            entry["kind"] == "evaluate" and is_count(entry["steps"]) for entry in later
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # a run that was stopped before its first stage ended has no summary
    return later if belongs and done else []
