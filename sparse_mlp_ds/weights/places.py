"""Where weights come from: a file, an export's folder, a run's or a checkpoint's."""

from pathlib import Path

from torch import Tensor

from sparse_mlp_ds import dist
from sparse_mlp_ds.checkpoints import backbone
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, checkpoints_of, find, leaves
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.weights import formats

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The two files of an export that are read."""
_WHAT = "give a .safetensors or .npz file, or the folder of an export, a run or a checkpoint"


def kind(path: Path) -> str:
    """Return `file`, `export` or `checkpoint` (a run has those); nothing is opened. Raises UserError for all else."""
    if path.is_file():
        return "file"
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; {_WHAT}")
    if (path / MANIFEST).exists() or checkpoints_of(path):
        return "checkpoint"
    if (path / CONFIG).exists() or (path / WEIGHTS).exists():
        return "export"
    raise UserError(f"{path}: a folder, but no export, run or checkpoint; {_WHAT}")


def read(path: Path) -> dict[str, Tensor]:
    """Return weights in float32 by the names they have there. The same on every rank; collective where there are some.

    Of a checkpoint, the model's weights alone are read. Raises UserError.
    """
    if not path.is_dir():
        return formats.read(path)  # explains a path that leads nowhere, too
    if kind(path) == "export":
        return formats.read(exported(path, WEIGHTS))
    checkpoint = dist.on_rank_zero(lambda: find(path)[0])  # which reads every byte once, for the hashes
    return backbone.weights(checkpoint)


def exported(folder: Path, name: str) -> Path:
    """Return a file of an export. Raises UserError if it is missing, or a link out of the folder."""
    file = folder / name
    if not file.is_file():
        raise UserError(f"{file}: missing; write the export again")
    if leaves(file, folder):
        raise UserError(f"{file}: a link out of the folder; copy the file there")
    return file
