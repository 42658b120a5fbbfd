"""Imports a file of weights as a model.

The user names the model; what the file does not tell about its images is what is usual for files of its layout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sparse_mlp_ds import __version__
from sparse_mlp_ds.config.overrides import apply
from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.hub.config import ModelConfig, Origin, explain
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import of_images
from sparse_mlp_ds.weights import formats, layouts
from sparse_mlp_ds.weights.coverage import Coverage
from sparse_mlp_ds.weights.load import load_into
from sparse_mlp_ds.weights.resize import MODES

_MIXERS = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 0.875}
PUBLISHED: dict[str, dict[str, Any]] = {
    "own": {},
    "timm": _MIXERS,
    "google": _MIXERS,
    "deit": {"crop_fraction": 0.875},
    "moco_v3": {"crop_fraction": 0.875},
    "resmlp": {"crop_fraction": 0.9},
    "timm_resmlp": {"crop_fraction": 0.875},
}
"""How images were cropped and normalised for published files of a layout: keys of a recipe's `data` that differ from
their defaults, which are ImageNet's mean and standard deviation."""


def import_file(
    file: Path, name: str, overrides: Sequence[str] = (), classes: Sequence[str] | None = None, resize: str = "bilinear"
) -> tuple[ModelConfig, dict[str, Tensor], Coverage]:
    """Read a .safetensors or .npz file as a registered model.

    Args:
        file: The file of weights.
        name: Name of the registered model.
        overrides: `model.KEY=VALUE`, `moe.KEY=VALUE` or `data.KEY=VALUE`, where KEY is a key of that recipe section.
        classes: Names of the classes, one for each output of the file's head; None for their numbers.
        resize: How weights are resized to a different patch grid, see `weights.resize`.

    Returns the config of the model, all of its weights under its own names, and what was loaded. Raises UserError if
    the file does not fit the model.
    """
    of_images(registry.preset(name))
    if resize not in MODES:
        raise UserError(f"--resize {resize}: {did_you_mean(resize, MODES)}")
    if file.is_dir():
        raise UserError(f"{file}: a folder; give a .safetensors or .npz file, or use `sparse-mlp-ds export`")
    weights = layouts.to_own_names(formats.read(file), file)
    head = weights.tensors.get("head.bias")
    count = 0 if head is None else head.numel()
    if classes is not None and len(classes) != count:
        raise UserError(f"--classes: {len(classes)} names for the {count} outputs of {file}'s head; give one for each")

    sections = sections_of(name, overrides, PUBLISHED[weights.layout])
    config = _config(name, sections, tuple(classes or map(str, range(count))), file)
    try:
        model = SparseVisionModel(config)
    except RuntimeError as error:
        raise UserError(f"--set model: no such {name} can be built ({str(error).splitlines()[0]})") from None
    coverage = load_into(model.backbone, config.spec, file, mode=resize)
    return config, {key: parameter.detach() for key, parameter in model.backbone.named_parameters()}, coverage


def sections_of(name: str, overrides: Sequence[str], pixels: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the recipe sections `model`, `moe` and `data` with overrides applied. pixels: `data` without overrides."""
    tree: dict[str, Any] = {"model": {"name": name}, "moe": {}, "data": dict(pixels)}
    for override in overrides:
        apply(tree, override)
    for key, section in tree.items():
        if key not in ("model", "moe", "data") or not isinstance(section, dict):
            raise UserError(f"--set {key}: not a section of a model; set model.KEY, moe.KEY or data.KEY")
    return tree


def _config(name: str, sections: dict[str, dict[str, Any]], classes: tuple[str, ...], file: Path) -> ModelConfig:
    try:
        config = {
            "name": name,
            "spec": model_spec(sections["model"]),
            "moe": MoE.model_validate(sections["moe"]),
            "classes": classes,
            "data": Pixels.model_validate(sections["data"]),
            "origin": Origin(version=__version__, weights="imported", file=file.name),
        }
        return ModelConfig.model_validate(config)
    except ValidationError as error:
        raise UserError(f"--set: {explain(error)}; correct it") from None
    except ValueError as error:
        raise UserError(f"--set model: {error}") from None
