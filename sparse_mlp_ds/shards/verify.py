"""Whether tars still are what their index says, and whether every image or row of tokens in them can be used."""

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from sparse_mlp_ds import files
from sparse_mlp_ds.data import questions, reads
from sparse_mlp_ds.data.bad_samples import BadSampleError
from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.data.rows import Rows
from sparse_mlp_ds.data.text_format import TOKENIZER, TextFormat
from sparse_mlp_ds.errors import RunError, UserError
from sparse_mlp_ds.shards import processes


def verify(shard: Shard, text: TextFormat | None = None) -> list[str]:
    """Return a line for everything that is wrong with a tar: bad entries, a changed hash, samples that cannot be used.

    Args:
        shard: The tar.
        text: What its rows are; None for images.
    """
    with reads.reading(shard.path):
        return _verify(shard, text)


def verify_all(index: Index, workers: int, report: Callable[[int, int], None]) -> list[str]:
    """Return what `verify` says of every tar of an index, in their order. Raises RunError if one of its processes dies.

    workers: number of processes. report: called with the number of finished tars and of all tars.
    """
    lines: list[str] = []
    with processes.pool(workers) as pool:
        try:
            for number, of_shard in enumerate(pool.map(partial(verify, text=index.text), index.shards), start=1):
                lines += of_shard
                report(number, len(index.shards))
        except BrokenProcessPool:
            raise RunError(f"{index.source}: a process that read it {processes.DIED}") from None
    return lines


def verify_beside(index: Index, folder: Path) -> list[str]:
    """Return a line for everything that is wrong with the tokenizer and the questions beside tars of rows.

    index: of the tars. folder: where they lie.
    """
    if index.text is None:
        return []
    tokenizer, lines = folder / TOKENIZER, list[str]()
    if not tokenizer.is_file():
        lines.append(f"{tokenizer}: is missing; copy the tokenizer that made the tokens there")
    elif files.sha256(tokenizer) != index.text.tokenizer:
        lines.append(f"{tokenizer}: is not the tokenizer that made the tokens (sha256); copy that one there")
    if index.text.packing == "spans":
        try:
            questions.load(folder, len(index))
        except UserError as error:
            lines.append(str(error))
    return lines


def _verify(shard: Shard, text: TextFormat | None) -> list[str]:
    if shard.files is not None:
        return _verify_files(Path(shard.path), shard.files, shard.sizes)
    lines = [f"{shard.path}: {entry.key!r} at offset {entry.offset}: {entry.reason}" for entry in shard.bad_entries]
    if not Path(shard.path).is_file():
        return [*lines, f"{shard.path}: is missing; copy or remake it"]
    if files.sha256(Path(shard.path)) != shard.sha256:
        lines.append(f"{shard.path}: differs from the one that was indexed (sha256); index or remake it")
    with open(shard.path, "rb") as file:
        for position in range(len(shard)):
            file.seek(shard.offsets[position])
            try:
                content = file.read(shard.sizes[position])
                if text:
                    Rows(text).decode(content)
                else:
                    Picture(content).upright()
            except BadSampleError as error:
                where = f"sample {shard.key(position)!r} at offset {shard.offsets[position]}"
                lines.append(f"{shard.path}: {where}: {error}")
    return lines


def _verify_files(folder: Path, files: np.ndarray, sizes: np.ndarray) -> list[str]:
    """Return a line for every image of a folder that is gone, has changed its size, or does not decode."""
    lines = []
    for name, size in zip(files, sizes.tolist(), strict=True):
        path = folder / name.decode()
        try:
            content = path.read_bytes()
            if len(content) != size:
                lines.append(
                    f"{path}: has {len(content)} bytes, the index says {size}; index the folder's images again"
                )
            Picture(content).upright()
        except OSError as error:
            lines.append(f"{path}: {error.strerror}; index the folder again")
        except BadSampleError as error:
            lines.append(f"{path}: {error}")
    return lines
