"""Rows of tokens are written as blocks in tars: KEY.tokens.npy, and KEY.labels.npy if they have labels."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.index import UNLABELLED, Index
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards.row_scan import scan

BLOCK = 4096
"""Largest number of rows in a block: few enough that a reader of whole blocks does with little memory."""


class RowFile:
    """Rows and their labels, collected in a file until they are written as tars."""

    def __init__(self, path: Path, text: TextFormat):
        """path: the file, which is made. text: what the rows are."""
        self.text = text
        """What the rows are."""
        self._path = path
        self._file = path.open("wb")
        self._labels: list[np.ndarray] = []
        self.count = 0
        """Number of rows so far."""

    def add(self, rows: np.ndarray, label: int = UNLABELLED) -> None:
        """Append rows, [k, n]. label: that of all of them."""
        self._file.write(rows.astype(self.text.dtype).tobytes())
        self._labels.append(np.full(len(rows), label, np.int32))
        self.count += len(rows)

    def close(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all rows, [N, n], which stay in the file, and their labels, [N] int32."""
        self._file.close()
        rows = np.memmap(self._path, self.text.dtype, "r", shape=(self.count, self.text.length))
        return rows, np.concatenate(self._labels)

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink()


@dataclass(frozen=True)
class Layout:
    """How rows are put into tars."""

    per_shard: int = 100_000
    """Largest number of rows in a tar."""
    seed: int | None = 0
    """Seed of the order in which rows go into tars; None keeps the order that they have."""


def write(
    folder: Path,
    name: str,
    collected: RowFile,
    layout: Layout,
    classes: list[str],
    plan: str,
    report: Callable[[int, int], None],
) -> None:
    """Write rows as folder/NAME-000000.tar and so on, and their index.

    Args:
        folder: Folder of the tars, which exists.
        name: First part of the tars' names.
        collected: The rows.
        layout: How they are put into tars.
        classes: Class names.
        plan: Hash of the texts and options, see `Index.plan`.
        report: Called with the number of finished tars and of all tars.
    """
    rows, labels = collected.close()
    order = np.arange(len(rows))
    if layout.seed is not None:
        order = np.random.Philox(key=[layout.seed, 0]).random_raw(len(rows)).argsort(kind="stable")
    parts = np.array_split(order, -(-len(rows) // layout.per_shard))
    labelled, shards = bool((labels != UNLABELLED).any()), []
    for number, part in enumerate(parts):
        path = folder / f"{name}-{number:06d}.tar"
        _write_tar(path, f"{number:06d}", rows, labels if labelled else None, part)
        files.sync(path)
        shards.append(scan(path))
        report(number + 1, len(parts))
    Index(str(folder), classes, shards, plan, collected.text).save(folder)


def finished(out: Path, names: Sequence[str], plan: str) -> list[Index]:
    """Return the indexes that an earlier call has written; none if the folder is not there, or empty.

    Args:
        out: The data set's folder.
        names: Folders in it; an empty name is `out` itself.
        plan: Hash of the texts and options.

    Raises UserError if the folder holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    indexes = [index_file.load(out / name) for name in names if (out / name / index_file.FILE_NAME).exists()]
    if len(indexes) < len(names) or any(index.plan != plan for index in indexes):
        raise UserError(f"{out}: holds something else than these texts with these options; remove it or name another")
    return indexes


def _write_tar(path: Path, key: str, rows: np.ndarray, labels: np.ndarray | None, order: np.ndarray) -> None:
    """Write one tar.

    Args:
        path: The tar.
        key: First part of its blocks' keys.
        rows: [N, n] tokens of the whole data set.
        labels: [N] labels of the whole data set; None stores none.
        order: Which rows go into the tar, in which order.
    """
    import webdataset

    small = labels is not None and labels.max() < 1 << 15
    with path.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
        for number, part in enumerate(np.split(order, range(BLOCK, len(order), BLOCK))):
            members = {"tokens.npy": _npy(rows[part])}
            if labels is not None:
                members["labels.npy"] = _npy(labels[part].astype("<i2" if small else "<i4"))
            writer.write({"__key__": f"{key}{number:04d}", **members})


def _npy(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
