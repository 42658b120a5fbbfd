"""Reads the tensors of a file of weights: safetensors and npz. Nothing is ever unpickled."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparse_mlp_ds.errors import UserError, one_line

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
"""Endings of files that are pickles, or may be; they are refused."""
LARGEST = 16 << 30
"""Most bytes that an npz file may unpack to: twenty times the largest published Mixer."""

COUNTER = ".num_batches_tracked"
"""End of the names of batch norm's counters of steps: whole numbers, and no weights; they are left out."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAME = re.compile(r"[A-Za-z0-9_]+([./-][A-Za-z0-9_]+)*")
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, SafetensorError),
)
"""What numpy, zipfile and safetensors raise for files that are damaged, or harmful on purpose."""


def read(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file in float32, under the names in the file.

    Raises UserError unless it is a readable .safetensors or .npz file of finite, non-empty floating-point tensors.
    """
    path = Path(path)
    check_suffix(path)
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a file of weights")
        members = _safetensors(path) if suffix == ".safetensors" else _npz(path)
        return {name: _checked(path, name, tensor) for name, tensor in members}
    except _UNREADABLE as error:
        why = one_line(error)
        raise UserError(f"{path}: cannot be read as {suffix[1:]} ({why}); fetch or write it again") from None


def check_suffix(path: Path) -> None:
    """Raise UserError unless a file's name ends as weights do that can be read."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UserError(
            f"{path}: {suffix} files are pickles, which run code when they are opened, and are never read; convert it "
            'once: python -c "import torch, safetensors.torch as s; '
            "s.save_file(torch.load('IN', weights_only=True), 'OUT.safetensors')\" "
            "(of DeiT's files take ['model'], of MoCo v3's ['state_dict'])"
        )
    if suffix not in (".safetensors", ".npz"):
        raise UserError(f"{path}: not a weights file; give a .safetensors or .npz file")


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file itself is not iterable
            if not name.endswith(COUNTER):
                yield name, file.get_tensor(name)


def _npz(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of an archive one by one.

    numpy.load is not used, because a later member would replace an earlier one of the same name.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST >> 30} GiB")
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(set(names)) < len(names):
            raise ValueError("two arrays have the same name")
        for name, member in zip(names, members, strict=True):
            if name.endswith(COUNTER):
                continue
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
            if array.dtype.kind != "f":
                raise ValueError(f"'{_shown(name)}' is of type {array.dtype}, weights are floating-point")
            with np.errstate(over="ignore"):  # values too large for float32 become infinity, which is refused
                array = np.ascontiguousarray(array, dtype=np.float32)
            yield name, torch.from_numpy(array)


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in float32.

    Raises UserError if a value is not finite, or if the name could be a path or could not be printed in a message.
    """
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
    """Return a name from a stranger as printable text of at most 80 characters, with control characters escaped."""
    return ascii(name[:80])[1:-1]
