"""Weights as they lie in files: safetensors and npz, in this package's names, timm's or Google's.

Nothing is ever unpickled. The two foreign layouts hold the same MLP-Mixer (Tolstikhin et al., 2021): timm names its
modules almost as we do (`stem` is our `patch_embed`); Google's published .npz files are Flax's, `MixerBlock_3/
token_mixing/Dense_0/kernel`, with dense kernels [in, out] and the stem's [height, width, in, out].
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_mlp_ds.errors import UserError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
LARGEST = 16 << 30
"""Bytes an npz may unpack to: twenty times the largest published Mixer."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAME = re.compile(r"[A-Za-z0-9_]+([./-][A-Za-z0-9_]+)*")
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError)
_UNREADABLE += (zipfile.BadZipFile, zlib.error, SafetensorError)


@dataclass(frozen=True)
class Weights:
    """A file's tensors under this package's names."""

    layout: str
    """`own`, `timm` or `google`."""
    tensors: dict[str, Tensor]
    origin: dict[str, str]
    """Our name -> the file's."""
    unknown: tuple[str, ...]
    """Names that the layout does not have, as in the file."""
    outside: tuple[str, ...]
    """Names outside the backbone (a projector), as in the file."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Return a file's tensors in float32, by the file's names.

    Raises UserError unless it is a readable .safetensors or .npz file of finite, non-empty floating-point tensors.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UserError(
            f"{path}: {suffix} files are pickles, which run code when they are opened, and are never read; convert it "
            'once: python -c "import torch, safetensors.torch as s; '
            "s.save_file(torch.load('IN', weights_only=True), 'OUT.safetensors')\""
        )
    if suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path}: not a weights file; give a .safetensors or .npz file")
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of weights")
        members = _safetensors(path) if suffix == ".safetensors" else _npz(path)
        return {name: _checked(path, name, tensor) for name, tensor in members}
    except _UNREADABLE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as {suffix[1:]} ({why}); fetch or write it again") from None


def to_own_names(tensors: dict[str, Tensor], file: str | Path) -> Weights:
    """Recognise the layout by its patch projection or blocks, and translate. file: for messages.

    Raises UserError for names of no known layout.
    """
    own = {name.removeprefix("backbone.") for name in tensors}
    if any(name.startswith("patch_embed.") for name in own):
        wrapped = any(name.startswith("backbone.") for name in tensors)
        outside = tuple(name for name in tensors if wrapped and not name.startswith("backbone."))
        origin = {name.removeprefix("backbone."): name for name in tensors if name not in outside}
        return Weights("own", {name: tensors[raw] for name, raw in origin.items()}, origin, (), outside)

    if any(name.startswith("stem.") for name in tensors):
        layout, translate = "timm", _from_timm
    elif any(name.startswith(("stem/", "MixerBlock_")) for name in tensors):
        layout, translate = "google", _from_google
    else:
        some = ", ".join(f"'{name}'" for name in list(tensors)[:3]) or "none at all"
        raise UserError(
            f"{file}: tensors of no layout known here ({some}); rename them as this package does "
            "('patch_embed.proj.weight'), as timm ('stem.proj.weight') or as Google ('stem/kernel')"
        )
    origin = {own: raw for raw in tensors if (own := translate(raw))}
    unknown = tuple(raw for raw in tensors if not translate(raw))
    values = {own: tensors[raw] if layout == "timm" else _from_flax(raw, tensors[raw]) for own, raw in origin.items()}
    return Weights(layout, values, origin, unknown, ())


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


def _from_flax(name: str, tensor: Tensor) -> Tensor:
    """Reorder a kernel's axes: [in, out] -> [out, in], [height, width, in, out] -> [out, in, height, width]."""
    if not name.endswith("/kernel"):
        return tensor
    return (tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.transpose(-1, 0)).contiguous()


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file itself is not iterable
            yield name, file.get_tensor(name)


def _npz(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the archive's members one by one: numpy.load would let a later member replace an earlier namesake."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST >> 30} GiB")
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            raise ValueError("two arrays have the same name")
        for name, member in zip(names, members, strict=True):
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind != "f":
                raise ValueError(f"'{_shown(name)}' is of type {array.dtype}, weights are floating-point")
            with np.errstate(over="ignore"):  # to infinity, which is refused
                array = np.ascontiguousarray(array, dtype=np.float32)
            yield name, torch.from_numpy(array)


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in float32; its name is one that can stand in messages and cannot be taken for a path."""
    if "@" in name:
        raise UserError(f"{path}: a piece of a training checkpoint, not a file of weights; continue it with --resume")
    if not _NAME.fullmatch(name):
        raise UserError(f"{path}: '{_shown(name)}' is no tensor name; use letters, digits, '_', '-', '.' and '/'")
    if tensor.dtype not in _FLOATS:
        raise UserError(f"{path}: '{name}' is of type {tensor.dtype}; weights are floating-point, leave it out")
    tensor = tensor.float()
    if tensor.numel() == 0 or not tensor.isfinite().all():
        state = "is empty" if tensor.numel() == 0 else "holds NaN or infinity"
        raise UserError(f"{path}: '{name}' {state}; use weights of a model that trained soundly")
    return tensor


def _shown(name: str) -> str:
    """Return a name that may hold anything (control characters) as printable text of bounded length."""
    return ascii(name[:80])[1:-1]
