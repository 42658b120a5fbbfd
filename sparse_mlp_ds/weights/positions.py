"""Brings the positions of a transformer's weights to those of a model.

Fixed positions are computed and stand in no file of this package, but MoCo v3's files hold them. Learned positions are
resized where the patch grids differ, those of tokens excepted, as DeiT's fine-tuning does.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import history
from sparse_mlp_ds.models.positions import sin_cos
from sparse_mlp_ds.models.spec import TransformerSpec
from sparse_mlp_ds.weights.resize import interpolation, side_of

NAME = "positions"
"""Name of the tensor in this package."""


def check_source(section: dict[str, Any] | None, spec: TransformerSpec, file: str | Path) -> None:
    """Raise UserError if the model that wrote the weights has different fixed positions, which no tensor would tell.

    Args:
        section: That model's description, as an export or a checkpoint holds it; None for a file of weights alone.
        spec: The model that is filled.
        file: Where the weights come from, for messages.
    """
    written = history.completed(section or {}).get(NAME, spec.positions)
    if "learned" not in (written, spec.positions) and written != spec.positions:
        raise UserError(
            f"{file}: was trained with model.positions {written}, the model has {spec.positions}; "
            f"set model.positions: {written}"
        )


def fit(
    tensors: dict[str, Tensor], spec: TransformerSpec, file: str | Path, mode: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resize learned positions to the model's patch grid, and leave out fixed ones that the model computes itself.

    Args:
        tensors: Weights under this package's names.
        spec: The model.
        file: Where the weights come from, for messages.
        mode: `bilinear` or `bicubic`.

    Returns the tensors, and the names of those that were resized. Raises UserError where the positions cannot be the
    model's.
    """
    _check_tokens(tensors, spec, file)
    if NAME not in tensors:
        return tensors, ()
    positions, tokens = tensors[NAME], spec.extra_tokens
    if positions.ndim != 2 or positions.shape[1] != spec.width or len(positions) <= tokens:
        return tensors, ()  # the comparison of shapes refuses them
    grid = positions[tokens:]
    before, after = side_of(len(grid), file), spec.image_size // spec.patch_size
    if spec.positions != "learned":
        own = sin_cos(before, spec.width, swapped=spec.positions == "sin_cos_swapped")
        if not torch.allclose(grid, own, atol=1e-5) or positions[:tokens].any():
            raise UserError(f"{file}: its positions are not the model's {spec.positions}; set model.positions: learned")
        return {name: tensor for name, tensor in tensors.items() if name != NAME}, ()
    if before == after:
        return tensors, ()
    if mode == "block":
        raise UserError(f"{file}: 'block' resizes token-mixing weights, not positions; resize bilinear or bicubic")
    resized = (interpolation(before, after, mode) @ grid.double()).float()
    return tensors | {NAME: torch.cat([positions[:tokens], resized])}, (NAME,)


def _check_tokens(tensors: dict[str, Tensor], spec: TransformerSpec, file: str | Path) -> None:
    """Raise UserError unless the weights have the tokens that the model has before the patches."""
    wanted = {
        "class_token": (spec.pool == "cls", "pool: cls", "pool: mean"),
        "distillation_token": (spec.distillation_token, "distillation_token: true", "distillation_token: false"),
    }
    for name, (has, with_it, without) in wanted.items():
        if (name in tensors) != has:
            there, fix = ("holds a", with_it) if name in tensors else ("holds no", without)
            raise UserError(f"{file}: {there} '{name}'; set model.{fix}, or give a file of the same model")
