"""Whether tensors are those of the model that a config claims, found out before such a model is built.

A config may come from a stranger. How many layers and experts are made follows from the number of tensors that are
really there, not from what it says.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.config import ModelConfig
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import MoESpec, TransformerSpec
from sparse_mlp_ds.moe.layer import MoELayer

MOST_POSITIONS = 1 << 26
"""Elements of a transformer's fixed positions, which are computed: no file bears them out."""


def check(config: ModelConfig, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Raise UserError, naming the first tensor, unless these are all of the model's and no others.

    shapes: what is there. path: for messages.
    """
    wanted = _shapes(config, len(shapes), path)
    for name, shape in wanted.items():
        if name not in shapes:
            near = get_close_matches(name, shapes.keys() - wanted.keys(), n=1)
            fix = f"there is '{near[0]}'" if near else "these are weights of another model"
            raise UserError(f"{path}: '{name}' of {config.name} is missing; {fix}")
        if list(shapes[name]) != shape:
            raise UserError(
                f"{path}: '{name}' is of shape {list(shapes[name])}, {config.name} needs {shape}; "
                "these are weights of another model"
            )
    if strays := [name for name in shapes if name not in wanted]:
        raise UserError(f"{path}: '{strays[0]}' has no place in {config.name}; these are weights of another model")


def _shapes(config: ModelConfig, tensors: int, path: Path) -> dict[str, list[int]]:
    """Return the model's tensors, built without memory for them. tensors: how many there are."""
    spec = config.spec
    left = tensors

    def make_moe(kind: str, dim: int, moe: MoESpec, dropout: float) -> MoELayer:
        nonlocal left
        left -= moe.experts
        if left < 0:
            raise UserError(f"{path}: claims more experts than there are tensors; these are weights of another model")
        return registry.local_moe(kind, dim, moe, dropout)

    if spec.depth > tensors:
        raise UserError(f"{path}: claims {spec.depth} blocks in {tensors} tensors; these are weights of another model")
    if isinstance(spec, TransformerSpec) and spec.tokens * spec.width > MOST_POSITIONS:
        raise UserError(f"{path}: claims {spec.tokens} patches of width {spec.width}; no model here is that large")
    try:
        with torch.device("meta"):
            whole = registry.build(spec, len(config.classes), make_moe)
    except (RuntimeError, OverflowError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{path}: no {config.name} can be built ({said}); these are weights of another model") from None
    return {name: list(parameter.shape) for name, parameter in whole.named_parameters()}
