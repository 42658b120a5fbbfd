"""Imports a file of weights as a model of text. The user names the model and gives the tokenizer of its tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from sparse_mlp_ds import __version__
from sparse_mlp_ds.checkpoints.model_weights import OUTPUT_BIAS
from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.config import Origin, TextConfig, TextRows, explain
from sparse_mlp_ds.hub.import_weights import sections_of
from sparse_mlp_ds.hub.text_model import SparseTextModel
from sparse_mlp_ds.hub.tokenizer import read as read_tokenizer
from sparse_mlp_ds.weights import formats, layouts
from sparse_mlp_ds.weights.coverage import Coverage
from sparse_mlp_ds.weights.load import load_into


def import_text(
    file: Path, name: str, tokenizer: Path | None, overrides: Sequence[str] = (), classes: Sequence[str] | None = None
) -> tuple[TextConfig, dict[str, Tensor], Coverage, bytes]:
    """Read a .safetensors or .npz file as a registered model of text.

    A file with `output_bias` becomes a masked language model, one with a head a classifier, and any other a model that
    returns features. Its weights have this package's names, with or without `backbone.` before them.

    Args:
        file: The file of weights.
        name: Name of the registered model.
        tokenizer: The tokenizer's file.
        overrides: `model.KEY=VALUE` or `moe.KEY=VALUE`, where KEY is a key of that recipe section.
        classes: Names of the classes, one for each output of the file's head; None for their numbers.

    Returns the config of the model, all of its weights under its own names, what was loaded, and the content of the
    tokenizer's file. Raises UserError if the file or the tokenizer does not fit the model.
    """
    if tokenizer is None:
        raise UserError(f"--model {name}: takes text; give the file that made its tokens with --tokenizer FILE")
    if file.is_dir():
        raise UserError(f"{file}: a folder; give a .safetensors or .npz file, or use `sparse-mlp-ds export`")
    content = read_tokenizer(tokenizer, None)
    opened = Tokenizer(tokenizer, content)
    tensors = layouts.to_own_names(formats.read(file), file).tensors
    head = tensors.get("head.bias")
    count = 0 if head is None else head.numel()
    if classes is not None and len(classes) != count:
        raise UserError(f"--classes: {len(classes)} names for the {count} outputs of {file}'s head; give one for each")
    task = "masked" if OUTPUT_BIAS in tensors and not count else "classes" if count else "features"
    config = _config(name, overrides, opened, task, tuple(classes or map(str, range(count))), file)
    model = SparseTextModel(config)
    coverage = load_into(model.backbone, config.spec, file, output_bias=_of(model))
    return config, model.own_weights(), coverage, content


def _of(model: SparseTextModel) -> Tensor | None:
    return None if model.output_bias is None else model.output_bias.detach()


def _config(
    name: str, overrides: Sequence[str], tokenizer: Tokenizer, task: str, classes: tuple[str, ...], file: Path
) -> TextConfig:
    sections = sections_of(name, overrides, {})
    if sections["data"]:
        raise UserError("--set data: a model of text has none of these keys; set model.KEY or moe.KEY")
    try:
        spec = model_spec(sections["model"])
        rows = {"length": getattr(spec, "length", 0), "vocabulary": tokenizer.vocabulary}
        config = {
            "name": name,
            "spec": spec,
            "moe": MoE.model_validate(sections["moe"]),
            "task": task,
            "classes": classes,
            "text": TextRows.model_validate(rows | {"tokenizer": tokenizer.sha256, "special": tokenizer.special}),
            "origin": Origin(version=__version__, weights="imported", file=file.name),
        }
        with torch.device("meta"):  # which costs nothing, whatever the sizes
            return TextConfig.model_validate(config)
    except ValidationError as error:
        raise UserError(f"--set: {explain(error)}; correct it") from None
    except ValueError as error:
        raise UserError(f"--set model: {error}") from None
