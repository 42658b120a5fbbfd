"""Fill a model from weights that lie somewhere: all of the backbone, or an error and nothing changed."""

import math
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.spec import MixerSpec, PatchSpec
from sparse_mlp_ds.weights import formats, places, resize
from sparse_mlp_ds.weights import upcycle as upcycling
from sparse_mlp_ds.weights.coverage import Coverage

Shapes = dict[str, list[int]]

_KEYS = {
    "patch_embed.": "model.width and model.patch_size",
    "mlp_tokens.": "model.token_hidden",
    "mlp_channels.": "model.channel_hidden",
    "moe_s.": "model.moe_s",
    "moe_c.": "model.moe_c",
    "rerepresent": "model.sparse_tokens and model.sparse_width",
    "norm": "model.width",
}
"""Part of a tensor's name -> the recipe's keys that shape it."""


def load_into(
    model: Backbone,
    spec: PatchSpec,
    path: str | Path,
    *,
    mode: str = "bilinear",
    upcycle: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    head: bool = True,
) -> Coverage:
    """Fill `model`, built from `spec` and initialised, from what `places` reads; the same on every rank.

    mode: how token-mixing weights come to another patch grid, see `resize`. upcycle: the file is a dense Mixer and the
    model sparse, see `upcycle`; noise: relative size of what is added to each expert's weights, keyed by `seed`.
    head: take the file's head, if it has one of the model's size; it stays fresh otherwise.

    Raises UserError, before anything is changed, naming the first tensor that is missing, of another shape or too many.
    """
    if not (noise >= 0 and math.isfinite(noise)):
        raise ValueError(f"noise {noise} is not a relative size")
    found = formats.to_own_names(places.read(Path(path)), path)
    tensors, resized = found.tensors, ()
    if isinstance(spec, MixerSpec):
        tensors, resized = resize.to_patches(tensors, spec, path, mode)
    wanted = _shapes(spec, model)
    body = [name for name in wanted if not name.startswith("head.")]

    if upcycle:
        plan = upcycling.plan(tensors, spec, model, body, path)
    else:
        plan = upcycling.Plan({name: name for name in body}, frozenset(), ())
    replaced = {name for name in tensors if upcycle and upcycling.in_sparse_block(name, spec)}
    placed = wanted.keys() | replaced
    strays = [found.origin[name] for name in tensors if name not in placed and not name.startswith("head.")]
    strays = [*found.unknown, *strays]
    for name, source in plan.sources.items():
        _check(name, source, tensors, wanted[name], found, strays, path)
    if strays:
        raise UserError(f"{path}: '{strays[0]}' has no place in the model; remove it, or give the model that wrote it")

    sources = plan.sources | _head(tensors, wanted, head)
    unused = tensors.keys() - set(sources.values())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in sources:
                changed = noise if upcycle and ".experts." in name else 0.0
                parameter.copy_(upcycling.perturb(tensors[sources[name]], name, changed, seed))
    return Coverage(
        loaded=tuple(name for name in wanted if name in sources),
        fresh=tuple(name for name in wanted if name not in sources),
        skipped=tuple(found.origin[name] for name in tensors if name in unused) + found.outside,
        resized=resized,
        **_verdict(plan, resized, upcycle, noise),
    )


def _shapes(spec: PatchSpec, model: Backbone) -> Shapes:
    """Return every tensor's shape, those of experts that live on other ranks too."""
    with torch.device("meta"):
        whole = registry.build(spec, getattr(model.head, "out_features", 0))
    return {name: list(parameter.shape) for name, parameter in whole.named_parameters()}


def _head(tensors: dict[str, Tensor], wanted: Shapes, head: bool) -> dict[str, str]:
    """Return the head's tensors, if the file has all of them in the right shape and they are wanted."""
    names = [name for name in wanted if name.startswith("head.")]
    fits = all(name in tensors and list(tensors[name].shape) == wanted[name] for name in names)
    return {name: name for name in names} if head and fits else {}


def _check(
    name: str, source: str, tensors: dict[str, Tensor], shape: list[int], found: formats.Weights, strays, path
) -> None:
    """Raise unless the file has `source` in the shape that the model's `name` needs. strays: names of no use, as is."""
    if source not in tensors:
        near = get_close_matches(source, strays, n=1, cutoff=0.3) or strays[:1]
        fix = f"rename '{near[0]}'" if near else "give the model that wrote the file, or all of the file"
        block = ".".join(source.split(".")[:2])
        if any(part in source for part in (".moe_", ".rerepresent")) and f"{block}.mlp_tokens.fc1.weight" in tensors:
            fix = f"{block} is dense in the file, turn upcycling on or give a dense model"
        raise UserError(f"{path}: '{source}' is missing; {fix}")
    has = list(tensors[source].shape)
    if has != shape:
        keys = next((keys for part, keys in _KEYS.items() if part in name), "the model (its image_size too)")
        raise UserError(
            f"{path}: '{found.origin[source]}' is of shape {has}, the model's '{name}' of {shape}; set {keys} to match"
        )


def _verdict(plan: upcycling.Plan, resized: tuple[str, ...], upcycle: bool, noise: float) -> dict[str, bool | str]:
    differs = list(plan.differs)
    if upcycle and noise:
        differs.append(f"experts carry noise of relative size {noise:g}")
    if resized:
        differs.append(f"{len(resized)} token-mixing tensors were resized")
    if differs:
        return {"exact": False, "reason": "; ".join(differs)}
    if upcycle:
        return {"exact": True, "reason": "every MoE layer returns what the dense MLP did, where nothing is dropped"}
    return {"exact": True, "reason": "all of the backbone is the file's own"}
