"""Checks that tensors belong to the model that a config describes, before memory is allocated for such a model.

A config may come from a stranger: it cannot make this process build more layers or experts than there are tensors.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch

from sparse_mlp_ds.checkpoints.model_weights import OUTPUT_BIAS
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.config import AnyConfig, TextConfig
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.spec import TransformerSpec
from sparse_mlp_ds.moe.layer import MoELayer

MOST_POSITIONS = 1 << 26
"""Most elements of a transformer's position embeddings, which are computed and so not among the tensors of a file."""
_WRONG = "these are weights of a different model"


def check_tensors(config: AnyConfig, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Check that there are all tensors of the model, in its shapes, and no others.

    shapes: name -> shape of the tensors that are there. path: where they come from, for messages. Raises UserError that
    names the first tensor that is wrong.
    """
    expected = _expected_shapes(config, len(shapes), path)
    for name, shape in expected.items():
        if name not in shapes:
            near = get_close_matches(name, shapes.keys() - expected.keys(), n=1)
            fix = f"there is '{near[0]}'" if near else _WRONG
            raise UserError(f"{path}: '{name}' of {config.name} is missing; {fix}")
        if list(shapes[name]) != shape:
            raise UserError(f"{path}: '{name}' is of shape {list(shapes[name])}, {config.name} needs {shape}; {_WRONG}")
    if strays := [name for name in shapes if name not in expected]:
        raise UserError(f"{path}: '{strays[0]}' has no place in {config.name}; {_WRONG}")


def _expected_shapes(config: AnyConfig, tensors: int, path: Path) -> dict[str, list[int]]:
    """Return name -> shape of the model's tensors, without allocating memory for them.

    tensors: how many there are in the file. path: of the file, for messages.
    """
    spec = config.spec
    left = tensors

    def make_moe(kind: str, dim: int, moe: MoESpec, dropout: float) -> MoELayer:
        nonlocal left
        left -= moe.experts
        if left < 0:
            raise UserError(f"{path}: claims more experts than there are tensors; {_WRONG}")
        return registry.local_moe(kind, dim, moe, dropout)

    if spec.depth > tensors:
        raise UserError(f"{path}: claims {spec.depth} blocks in {tensors} tensors; {_WRONG}")
    if isinstance(spec, TransformerSpec) and spec.tokens * spec.width > MOST_POSITIONS:
        raise UserError(f"{path}: claims {spec.tokens} patches of width {spec.width}; no model here is that large")
    try:
        with torch.device("meta"):
            whole = registry.build(spec, config.outputs, make_moe)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: no {config.name} can be built ({reason}); {_WRONG}") from None
    shapes = {name: list(parameter.shape) for name, parameter in whole.named_parameters()}
    if isinstance(config, TextConfig) and config.task == "masked":
        shapes[OUTPUT_BIAS] = [config.spec.vocabulary]
    return shapes
