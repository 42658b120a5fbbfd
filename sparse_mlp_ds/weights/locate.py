"""Where weights come from: a file, or the folder of an export, a run or a checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints import model_weights
from sparse_mlp_ds.checkpoints.manifest import MANIFEST, checkpoints_of, find, leaves, numbered, read_manifest
from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.weights import formats

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Names of the two files that are read of an export."""
GRAPHS = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""Names of the files that other programs read of an export in a different format."""
_FIX = "give a .safetensors or .npz file, or the folder of an export, a run or a checkpoint"


@dataclass(frozen=True)
class Source:
    """Weights, and the model that they belong to."""

    tensors: dict[str, Tensor]
    """The weights in float32, under the names that they have there."""
    model: dict[str, Any] | None
    """The model's description as it was written, unchecked: an export's `spec`, or the section `model` of the recipe in
    a checkpoint. None for a file of weights alone."""


def kind(path: Path) -> Literal["file", "export", "checkpoint"]:
    """Return what a path is; a run folder counts as `checkpoint`, because it holds some.

    No file is read. Raises UserError if the path is nothing that holds weights.
    """
    if path.is_file():
        return "file"
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; {_FIX}")
    if (path / MANIFEST).exists() or checkpoints_of(path):
        return "checkpoint"
    if (path / CONFIG).exists() or (path / WEIGHTS).exists():
        return "export"
    raise UserError(f"{path}: a folder, but no export, run or checkpoint; {_FIX}")


def check(path: Path) -> None:
    """Raise UserError unless a path holds weights that can be opened: a run that needs them later says so at once."""
    found = kind(path)
    if found == "checkpoint":
        needed = _newest_files(path)
    else:
        needed = [path if found == "file" else export_file(path, WEIGHTS)]
        formats.check_suffix(needed[0])
    for file in needed:
        try:
            file.open("rb").close()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; make it readable for this user") from None


def _newest_files(path: Path) -> list[Path]:
    """Return the files of a checkpoint, or of a run's newest one with a readable manifest. Raises UserError."""
    folder = checkpoints_of(path)
    checkpoints, problem = ([path], "") if folder is None else (numbered(folder), "it has no checkpoint")
    for checkpoint in checkpoints:
        try:
            return [checkpoint / name for name in read_manifest(checkpoint)["files"]]
        except UserError as error:
            problem = problem or str(error)
    raise UserError(f"{path}: no weights here to start from ({problem}); {_FIX}")


def read(path: Path) -> Source:
    """Return the weights at a path, the same on every rank.

    Of a checkpoint only the model's weights are read, no optimizer state. Collective if there are several ranks. Raises
    UserError if the weights cannot be read.
    """
    if not path.is_dir():
        return Source(formats.read(path), None)  # which also explains a path that does not exist
    if kind(path) == "export":
        return Source(formats.read(export_file(path, WEIGHTS)), _spec(path))
    checkpoint = comm.on_rank_zero(lambda: find(path)[0])  # reads every byte once, to compare the hashes
    section = checkpoint.manifest["recipe"].get("model")
    return Source(model_weights.weights(checkpoint), section if isinstance(section, dict) else None)


def _spec(folder: Path) -> dict[str, Any] | None:
    """Return the `spec` of an export, None if its config.json cannot be read: the weights alone may do."""
    try:
        section = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["spec"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return section if isinstance(section, dict) else None


def export_file(folder: Path, name: str) -> Path:
    """Return the path of a file of an export. Raises UserError if it is missing, or a link out of the folder."""
    file = folder / name
    if not file.is_file():
        graph = next((graph for graph in GRAPHS.values() if (folder / graph).is_file()), None)
        fix = f"{graph} is for other programs: export with --format safetensors" if graph else "write the export again"
        raise UserError(f"{file}: missing; {fix}")
    if leaves(file, folder) and files.real(file).parent != _blobs(folder):
        raise UserError(f"{file}: a link out of the folder; copy the file there")
    return file


def _blobs(folder: Path) -> Path | None:
    """Return where the Hub's cache keeps the files that a folder snapshots/COMMIT of it links to; None elsewhere."""
    folder = files.real(folder)
    return folder.parents[1] / "blobs" if folder.parent.name == "snapshots" else None
