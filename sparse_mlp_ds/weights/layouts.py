"""Translates the names of published weights to this package's.

Each layout is one project's names for one kind of model:

* `own` are this package's names. Models of text have no other layout; `token_embed` is their stem.
* `timm` (MLP-Mixer) names modules almost as this package does; `stem` is our `patch_embed`.
* `google` (MLP-Mixer) comes from Flax: names such as `MixerBlock_3/token_mixing/Dense_0/kernel`, dense kernels
  [in, out], and the kernel of the stem [height, width, in, out].
* `deit` (ViT) are the names of timm and DeiT: `cls_token`, `pos_embed`, `blocks.0.attn.qkv`.
* `resmlp` (ResMLP) are the authors' names, `blocks.0.attn.weight` for the layer over patches and `gamma_1` for a
  LayerScale; `timm_resmlp` are timm's, `blocks.0.linear_tokens.weight` and `ls1`.
* `moco_v3` is a checkpoint of MoCo v3: the same names behind `module.base_encoder.`, where `head` is the projector,
  beside a momentum encoder and a predictor.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from sparse_mlp_ds.errors import UserError

Layout = Literal["own", "timm", "google", "deit", "moco_v3", "resmlp", "timm_resmlp"]
"""Whose names a file uses."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a file under this package's names."""

    layout: Layout
    """Whose names the file uses."""
    tensors: dict[str, Tensor]
    """This package's name -> tensor, with axes in this package's order."""
    origin: dict[str, str]
    """This package's name -> the name in the file."""
    unknown: tuple[str, ...]
    """Names in the file that its layout does not have."""
    outside: tuple[str, ...]
    """Names in the file that belong to no backbone, such as a projector's."""


def to_own_names(tensors: dict[str, Tensor], file: str | Path) -> Weights:
    """Translate the names and axes of tensors to this package's.

    tensors: as `formats.read` returns them; their names tell the layout. file: where they come from, for messages.
    Raises UserError if the names belong to no known layout.
    """
    layout = _layout(tensors)
    if layout is None:
        some = ", ".join(f"'{name}'" for name in list(tensors)[:3]) or "none at all"
        raise UserError(
            f"{file}: tensors of no layout known here ({some}); rename them as this package does "
            "('patch_embed.proj.weight', for text 'token_embed.weight'), as timm ('stem.proj.weight') or as Google "
            "('stem/kernel')"
        )
    if layout == "own":
        wrapped = any(name.startswith("backbone.") for name in tensors)
        outside = tuple(name for name in tensors if wrapped and not name.startswith("backbone."))
        origin = {name.removeprefix("backbone."): name for name in tensors if name not in outside}
        return Weights("own", {name: tensors[raw] for name, raw in origin.items()}, origin, (), outside)
    outside = tuple(name for name in tensors if layout == "moco_v3" and not _MOCO_BACKBONE.match(name))
    inside = [name for name in tensors if name not in outside]
    origin, unknown = _translate(inside, _TRANSLATIONS[layout])
    axes = _from_flax if layout == "google" else _from_torch
    return Weights(layout, {own: axes(raw, tensors[raw]) for own, raw in origin.items()}, origin, unknown, outside)


def _layout(names: Iterable[str]) -> Layout | None:
    """Return the layout that a file's names are of; the name of the patch projection, or of a block, tells it."""
    names = list(names)
    own = [name.removeprefix("backbone.") for name in names]
    if any(_MOCO_BACKBONE.match(name) for name in names):
        return "moco_v3"
    if any(_RESMLP_TELLS.search(name) for name in names):
        return "timm_resmlp" if any(name.startswith("stem.") for name in names) else "resmlp"
    if any(name in ("cls_token", "pos_embed") or ".attn.qkv." in name for name in names):
        return "deit"
    if any(name.startswith(("patch_embed.", "token_embed.")) for name in own):
        return "own"
    if any(name.startswith("stem.") for name in names):
        return "timm"
    if any(name.startswith(("stem/", "MixerBlock_")) for name in names):
        return "google"
    return None


def _translate(names: Iterable[str], translate: Callable[[str], str | None]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return this package's name -> the file's name, and the names in the file that have no translation."""
    own = {raw: translate(raw) for raw in names}
    return {name: raw for raw, name in own.items() if name}, tuple(raw for raw, name in own.items() if not name)


_NUMBER = r"(0|[1-9][0-9]{0,3})"
_TIMM = re.compile(
    rf"(stem\.proj|norm|head|blocks\.{_NUMBER}\.(norm[12]|(mlp_tokens|mlp_channels)\.fc[12]))\.(weight|bias)"
)
_GOOGLE = re.compile(
    rf"(?:MixerBlock_{_NUMBER}/)?"
    r"(stem|pre_head_layer_norm|head|LayerNorm_[01]|(?:token|channel)_mixing/Dense_[01])/(kernel|scale|bias)"
)
_GOOGLE_MODULES = {
    "stem": "patch_embed.proj",
    "pre_head_layer_norm": "norm",
    "head": "head",
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
}
_DEIT = re.compile(
    rf"(patch_embed\.proj|norm|head|head_dist|blocks\.{_NUMBER}\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
_DEIT_TOKENS = {"cls_token": "class_token", "dist_token": "distillation_token", "pos_embed": "positions"}
_RESMLP_TELLS = re.compile(r"blocks\.[0-9]+\.(ls1|gamma_1|linear_tokens\.weight|norm1\.alpha)$")
_RESMLP = re.compile(
    rf"(?:stem|patch_embed)\.proj\.(?:weight|bias)|(?:head)\.(?:weight|bias)|norm\.(?:alpha|beta)|blocks\.{_NUMBER}\."
    r"(?:norm[12]\.(?:alpha|beta)|(?:attn|linear_tokens|(?:mlp|mlp_channels)\.fc[12])\.(?:weight|bias)|ls[12]|gamma_[12])"
)
_RESMLP_PARTS = (
    (re.compile(r"^stem\."), "patch_embed."),
    (re.compile(r"\.alpha$"), ".weight"),
    (re.compile(r"\.beta$"), ".bias"),
    (re.compile(r"\.(attn|linear_tokens)\."), ".tokens."),
    (re.compile(r"\.mlp\."), ".mlp_channels."),
    (re.compile(r"\.(?:ls|gamma_)([12])$"), r".scale\1.weight"),
)
_MOCO_BACKBONE = re.compile(r"(module\.)?base_encoder\.(?!head\.)")


def _from_timm(name: str) -> str | None:
    return re.sub(r"^stem\.", "patch_embed.", name) if _TIMM.fullmatch(name) else None


def _from_google(name: str) -> str | None:
    parts = _GOOGLE.fullmatch(name)
    if parts is None:
        return None
    block, module, leaf = parts.groups()
    if (block is None) != (module in ("stem", "pre_head_layer_norm", "head")):
        return None
    own = f"{_GOOGLE_MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    return own if block is None else f"blocks.{block}.{own}"


def _from_deit(name: str) -> str | None:
    return _DEIT_TOKENS.get(name) or (name.replace(".attn.", ".attention.") if _DEIT.fullmatch(name) else None)


def _from_moco(name: str) -> str | None:
    return _from_deit(_MOCO_BACKBONE.sub("", name, count=1))


def _from_resmlp(name: str) -> str | None:
    if not _RESMLP.fullmatch(name):
        return None
    for theirs, ours in _RESMLP_PARTS:
        name = theirs.sub(ours, name)
    return name


_TRANSLATIONS: dict[Layout, Callable[[str], str | None]] = {
    "timm": _from_timm,
    "google": _from_google,
    "deit": _from_deit,
    "moco_v3": _from_moco,
    "resmlp": _from_resmlp,
    "timm_resmlp": _from_resmlp,
}


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    """Reorder a kernel's axes: [in, out] -> [out, in], [height, width, in, out] -> [out, in, height, width]."""
    if not name.endswith("/kernel"):
        return tensor
    return (tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.transpose(-1, 0)).contiguous()


def _from_torch(name: str, tensor: Tensor) -> Tensor:
    """Drop leading axes of size 1 where there are none here: [1, S, C] -> [S, C], [1, 1, C] -> [C]."""
    if name.endswith("pos_embed") and tensor.ndim == 3 and len(tensor) == 1:
        return tensor[0]
    is_vector = name.endswith(("_token", ".alpha", ".beta")) and tensor.ndim and tensor[..., 0].numel() == 1
    return tensor.flatten() if is_vector else tensor
