"""What reference implementations gave: arrays recorded under tests/references, as tensors."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[1] / "references"


def load(name: str) -> dict[str, Tensor]:
    """Return a recording's arrays by name; text stays out, see `text`."""
    return {key: torch.tensor(array) for key, array in _arrays(name).items() if array.dtype.kind != "U"}


def text(name: str, key: str) -> list[str]:
    """Return an array of a recording that holds text."""
    return _arrays(name)[key].tolist()


@cache
def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def under(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the arrays whose name starts with `prefix/`, by the rest of their name."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy recorded tensors into a module's parameters of the same names; every one must be there."""
    with torch.no_grad():
        parameters = dict(module.named_parameters())
        assert parameters.keys() == tensors.keys()
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name].view(parameter.shape))


def vit_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename what timm calls a ViT's tensors; its positions, which are fixed here, stay out."""
    renamed = {"cls_token": "class_token", ".attn.": ".attention."}
    found = {}
    for name, tensor in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        if name != "pos_embed":
            found[name] = tensor
    return found
