"""Fills a model from weights: all of its backbone, or a UserError and the model is unchanged."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from sparse_mlp_ds.checkpoints.model_weights import OUTPUT_BIAS
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import HEAD, Backbone
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.spec import MixerSpec, ResMlpSpec, TransformerSpec
from sparse_mlp_ds.models.text_spec import TextSpec
from sparse_mlp_ds.weights import layouts, locate, positions, resize, text_length
from sparse_mlp_ds.weights import upcycle as upcycling
from sparse_mlp_ds.weights.coverage import Coverage

Shapes = dict[str, list[int]]
"""Name of a tensor -> its shape."""

_RECIPE_KEYS = {
    "patch_embed.": "model.width and model.patch_size",
    "mlp_tokens.": "model.token_hidden",
    "mlp_channels.": "model.channel_hidden",
    "moe_s.": "model.moe_s",
    "moe_c.": "model.moe_c",
    "positions": "model.positions, model.pool and model.width",
    "class_token": "model.pool and model.width",
    "attention.": "model.width",
    ".mlp.": "model.channel_hidden",
    "scale": "model.width",
    ".tokens.": "model.image_size and model.patch_size",
    "rerepresent": "model.sparse_tokens and model.sparse_width",
    "norm": "model.width",
}
"""Part of a tensor's name -> the keys of a recipe that determine its shape."""
_TEXT_KEYS = {
    "token_embed.": "model.vocabulary and model.width",
    "positions": "model.length and model.width",
    ".spatial.": "model.length",
    "mlp_tokens.": "model.length and model.token_hidden",
    "moe_s.": "model.length and model.moe_s",
}
"""The same for models of text, where it is different."""


def load_into(
    model: Backbone,
    spec: ModelSpec,
    path: str | Path,
    *,
    mode: str = "bilinear",
    upcycle: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    head: bool = True,
    output_bias: Tensor | None = None,
) -> Coverage:
    """Fill an initialised model with the weights at `path`; the result is the same on every rank.

    Args:
        model: The model, built from `spec`; on each rank with the experts that live there.
        spec: The model as data.
        path: A file of weights, or the folder of an export, a run or a checkpoint.
        mode: How token-mixing weights are resized if the patch grids differ, see `weights.resize`.
        upcycle: Whether the weights are a dense Mixer's and the model is sparse, see `weights.upcycle`.
        noise: Size of the noise that upcycling adds to each expert's weights, relative to their root mean square.
        seed: Seed of that noise.
        head: Whether to take the head if there is one of the model's size; otherwise it keeps its initial values.
        output_bias: Bias [V] of a masked language model's output layer, which takes the one of such a model's weights;
            None leaves it there.

    Raises UserError, before anything is changed, naming the first tensor that is missing, has a different shape or has
    no place in the model.
    """
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise {noise} is not a relative size")
    source = locate.read(Path(path))
    weights = layouts.to_own_names(source.tensors, path)
    if isinstance(spec, TransformerSpec):
        positions.check_source(source.model, spec, path)
    tensors, resized = _to_patches(weights.tensors, spec, path, mode)
    bias = tensors.pop(OUTPUT_BIAS, None)
    shapes = _shapes(spec, model)
    body = [name for name in shapes if not name.startswith(HEAD)]

    if upcycle:
        plan = upcycling.plan(tensors, spec, model, body, path)
    else:
        plan = upcycling.Plan({name: name for name in body}, frozenset(), ())
    replaced = {name for name in tensors if upcycle and upcycling.in_sparse_block(name, spec)}
    known = shapes.keys() | replaced
    strays = [weights.origin[name] for name in tensors if name not in known and not name.startswith(HEAD)]
    strays = [*weights.unknown, *strays]
    _check_sources(plan, tensors, shapes, weights, strays, spec, path)

    sources = plan.sources | (_head(tensors, shapes) if head else {})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in sources:
                expert_noise = noise if upcycle and ".experts." in name else 0.0
                parameter.copy_(upcycling.perturb(tensors[sources[name]], name, expert_noise, seed))
    if output_bias is not None:
        shapes |= {OUTPUT_BIAS: list(output_bias.shape)}
        sources |= _take_bias(output_bias, bias)
    exact, reason = _verdict(plan, resized, upcycle, noise)
    return Coverage(
        loaded=tuple(name for name in shapes if name in sources),
        fresh=tuple(name for name in shapes if name not in sources),
        skipped=tuple(raw for name, raw in weights.origin.items() if name not in sources.values()) + weights.outside,
        resized=resized,
        exact=exact,
        reason=reason,
    )


def _check_sources(
    plan: upcycling.Plan,
    tensors: dict[str, Tensor],
    shapes: Shapes,
    weights: layouts.Weights,
    strays: Sequence[str],
    spec: ModelSpec,
    path: str | Path,
) -> None:
    """Raise UserError unless all tensors that a plan needs are there in the model's shapes, and no others.

    Args:
        plan: What fills each tensor of the model.
        tensors: The weights, on the model's patch grid or length.
        shapes: The model's tensors.
        weights: The weights as they were read.
        strays: Names in the file that have no place in the model.
        spec: The model.
        path: Where the weights come from, for messages.
    """
    for name, filled_by in plan.sources.items():
        if filled_by not in tensors:
            raise UserError(f"{path}: '{filled_by}' is missing; {_fix_missing(filled_by, tensors, strays)}")
        if (shape := list(tensors[filled_by].shape)) != shapes[name]:
            raise UserError(
                f"{path}: '{weights.origin[filled_by]}' is of shape {shape}, the model's '{name}' of {shapes[name]}; "
                f"set {_recipe_keys(name, spec)} to match"
            )
    if strays:
        raise UserError(f"{path}: '{strays[0]}' has no place in the model; remove it, or give the model that wrote it")


def _take_bias(output_bias: Tensor, bias: Tensor | None) -> dict[str, str]:
    """Fill the bias of an output layer with the one that was read, if it fits; return what was filled by which name."""
    if bias is None or bias.shape != output_bias.shape:
        return {}
    with torch.no_grad():
        output_bias.copy_(bias)
    return {OUTPUT_BIAS: OUTPUT_BIAS}


def _to_patches(
    tensors: dict[str, Tensor], spec: ModelSpec, file: str | Path, mode: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors on the model's patch grid or length, and the names of those that were resized.

    Args:
        tensors: Weights under this package's names.
        spec: The model.
        file: Where the weights come from, for messages.
        mode: How weights are resized, one of `resize.MODES`.
    """
    if isinstance(spec, (MixerSpec, ResMlpSpec)):
        return resize.to_patches(tensors, spec, file, mode)
    if isinstance(spec, TransformerSpec):
        return positions.fit(tensors, spec, file, mode)
    if isinstance(spec, TextSpec):
        return text_length.fit(tensors, spec, file)
    return tensors, ()


def _shapes(spec: ModelSpec, model: Backbone) -> Shapes:
    """Return the shapes of all tensors of the model, those of experts that live on other ranks included."""
    with torch.device("meta"):
        whole = registry.build(spec, getattr(model.head, "out_features", 0))
    return {name: list(parameter.shape) for name, parameter in whole.named_parameters()}


def _head(tensors: dict[str, Tensor], shapes: Shapes) -> dict[str, str]:
    """Return the names of the head's tensors, each under itself, if all of them are there in the model's shape."""
    names = [name for name in shapes if name.startswith(HEAD)]
    fits = all(name in tensors and list(tensors[name].shape) == shapes[name] for name in names)
    return {name: name for name in names} if fits else {}


def _fix_missing(source: str, tensors: dict[str, Tensor], strays: Sequence[str]) -> str:
    """Return what to do about a missing tensor. strays: names in the file that have no place in the model."""
    block = ".".join(source.split(".")[:2])
    if any(part in source for part in (".moe_", ".rerepresent")) and f"{block}.mlp_tokens.fc1.weight" in tensors:
        return f"{block} is dense in the file, turn upcycling on or give a dense model"
    if source == positions.NAME:
        return "the file's model has fixed ones; set model.positions to sin_cos, or give a file that has them"
    if near := get_close_matches(source, strays, n=1, cutoff=0.3) or strays[:1]:
        return f"rename '{near[0]}'"
    return "give the model that wrote the file, or all of the file"


def _recipe_keys(name: str, spec: ModelSpec) -> str:
    """Return the keys of a recipe that determine the shape of a tensor."""
    text = isinstance(spec, TextSpec)
    tables, size = ([_TEXT_KEYS, _RECIPE_KEYS], "length") if text else ([_RECIPE_KEYS], "image_size")
    pairs = (pair for table in tables for pair in table.items())
    return next((keys for part, keys in pairs if part in name), f"the model (its {size} too)")


def _verdict(plan: upcycling.Plan, resized: Sequence[str], upcycle: bool, noise: float) -> tuple[bool, str]:
    """Return whether the model computes what the model that wrote the weights does, and why or why not.

    Args:
        plan: What fills each tensor.
        resized: Names of the tensors that were resized.
        upcycle: Whether a dense model was upcycled.
        noise: Relative size of the noise that the experts got.
    """
    differs = list(plan.differs)
    if upcycle and noise:
        differs.append(f"experts carry noise of relative size {noise:g}")
    if resized:
        what = "learned positions" if positions.NAME in resized else f"{len(resized)} token-mixing tensors"
        differs.append(f"{what} were resized")
    if differs:
        return False, "; ".join(differs)
    if upcycle:
        return True, "every MoE layer returns what the dense MLP did, where nothing is dropped"
    return True, "the whole backbone comes from the file unchanged"
