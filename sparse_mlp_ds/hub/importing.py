"""A file of weights made into a model: what the file does not say is said by its user, or usual for its kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from sparse_mlp_ds import __version__
from sparse_mlp_ds.config import apply
from sparse_mlp_ds.data.sections import Pixels
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.hub.config import ModelConfig, Origin, explain
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.recipe import MoE, model_spec
from sparse_mlp_ds.weights import formats
from sparse_mlp_ds.weights.coverage import Coverage
from sparse_mlp_ds.weights.load import load_into
from sparse_mlp_ds.weights.resize import MODES

PUBLISHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_fraction": 0.875}
"""What timm's and Google's Mixers were trained and tested with."""


def import_file(
    file: Path, name: str, overrides: Sequence[str] = (), classes: Sequence[str] | None = None, resize: str = "bilinear"
) -> tuple[ModelConfig, dict[str, Tensor], Coverage]:
    """Return what a .safetensors or .npz file holds as the registered model `name`.

    overrides: `model.KEY=value`, `moe.KEY=value`, `data.KEY=value`, as a recipe has them. classes: their names, as many
    as the file's head has outputs. resize: see `weights.resize`. Raises UserError.
    """
    registry.preset(name)
    if resize not in MODES:
        raise UserError(f"--resize {resize}: {did_you_mean(resize, MODES)}")
    if file.is_dir():
        raise UserError(f"{file}: a folder; give a .safetensors or .npz file, or use `sparse-mlp-ds export`")
    found = formats.to_own_names(formats.read(file), file)
    head = found.tensors.get("head.bias")
    count = 0 if head is None else head.numel()
    if classes is not None and len(classes) != count:
        raise UserError(f"--classes: {len(classes)} names for the {count} outputs of {file}'s head; give one for each")

    tree: dict[str, Any] = {
        "model": {"name": name},
        "moe": {},
        "data": {} if found.layout == "own" else dict(PUBLISHED),
    }
    for override in overrides:
        apply(tree, override)
    for key, section in tree.items():
        if key not in ("model", "moe", "data") or not isinstance(section, dict):
            raise UserError(f"--set {key}: not of a model; set model.KEY, moe.KEY or data.KEY")
    try:
        config = ModelConfig(
            name=name,
            spec=model_spec(tree["model"]),
            moe=MoE.model_validate(tree["moe"]),
            classes=tuple(classes or map(str, range(count))),
            data=Pixels.model_validate(tree["data"]),
            origin=Origin(version=__version__, weights="imported", file=file.name),
        )
    except ValidationError as error:
        raise UserError(f"--set: {explain(error)}; correct it") from None
    except ValueError as error:
        raise UserError(f"--set model: {error}") from None
    try:
        model = SparseVisionModel(config)
    except RuntimeError as error:
        raise UserError(f"--set model: no such {name} can be built ({str(error).splitlines()[0]})") from None
    coverage = load_into(model.backbone, config.spec, file, mode=resize)
    return config, {key: parameter.detach() for key, parameter in model.backbone.named_parameters()}, coverage
