"""Reading a tar of rows of tokens: its blocks and where they are, and what is no usable block.

A block is a member KEY.tokens.npy, [rows, n] uint16 or uint32, and beside it KEY.labels.npy, [rows], if there are
labels. Only the headers of the arrays are read; one that would have to be unpickled is refused.
"""

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import reads
from sparse_mlp_ds.data.index import UNLABELLED, BadEntry, Shard
from sparse_mlp_ds.data.questions import QUESTIONS
from sparse_mlp_ds.data.text_format import TOKENIZER, Packing, TextFormat
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.tar_members import counted, problem, read_members, runs_of

TOKENS, LABELS = "tokens.npy", "labels.npy"
"""Suffixes of a block's members."""


def holds_rows(path: Path) -> bool:
    """Return whether the first member of a tar that can be read belongs to a block of rows."""
    first = next(read_members(path, []), None)
    return first is not None and first.name.endswith((TOKENS, LABELS))


def scan(path: Path, passed_over: PassedOver | None = None, source: str | None = None) -> Shard:
    """Index one tar of rows. Damage does not raise: what is no usable block becomes one of the shard's bad entries.

    Args:
        path: The tar.
        passed_over: Counts members that nobody takes for blocks: hidden ones, and what is neither a file nor a link.
        source: The tar's name in examples, if `path` is a copy.
    """
    passed_over, source = PassedOver() if passed_over is None else passed_over, source or str(path)
    with reads.reading(str(path)), path.open("rb") as file:
        return _scan(path, file, passed_over, source)


def alike(shards: Sequence[Shard]) -> list[Shard]:
    """Return tars of rows with the same size of a row in all of them; a tar without any row gets it from the others.

    Raises UserError if the rows' sizes differ.
    """
    sizes = {shard.row_bytes: shard for shard in shards if len(shard)}
    if len(sizes) > 1:
        one, two, *_ = sizes.values()
        raise UserError(
            f"{two.path}: its rows have {two.row_bytes} bytes, those of {one.path} have {one.row_bytes}; keep tars of "
            "different lengths in folders of their own"
        )
    return [replace(shard, row_bytes=size) for size in sizes for shard in shards]


def format_of(folder: Path, shards: Sequence[Shard]) -> TextFormat:
    """Return what the rows of tars are: as an earlier index.json says, or else the tokenizer.model beside the tars.

    Args:
        folder: Folder of the index and the tokenizer.
        shards: The tars, whose rows have the same size.

    Raises UserError if neither is there, or does not fit the rows.
    """
    size, earlier = shards[0].row_bytes, index_file.text_of(folder)
    if earlier and earlier.row_bytes == size:
        return earlier
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: has rows of tokens, but no {TOKENIZER}; put the tokenizer that made them there")
    tokenizer = Tokenizer(folder / TOKENIZER)
    packing: Packing = "spans" if (folder / QUESTIONS).exists() else earlier.packing if earlier else "documents"
    text = TextFormat(3, tokenizer.vocabulary, tokenizer.sha256, tokenizer.special, packing)
    if size % text.dtype.itemsize:
        raise UserError(f"{folder}: its rows of {size} bytes are not of {TOKENIZER}, whose tokens are {text.dtype}")
    return replace(text, length=size // text.dtype.itemsize)


class _Block(NamedTuple):
    """What the header of a block's tokens says."""

    offset: int
    """Where the first row starts in the tar, bytes."""
    rows: int
    """Number of rows."""
    row_bytes: int
    """Size of a row, bytes."""


def _scan(path: Path, file: IO[bytes], passed_over: PassedOver, source: str) -> Shard:
    blocks, labels, bad_entries = list[list[Any]](), list[int](), list[BadEntry]()
    known, size, row_bytes = set[str](), path.stat().st_size, 0
    for run in runs_of(counted(read_members(path, bad_entries), passed_over, source)):
        tokens = [member for member in run.members if member.name.endswith(f".{TOKENS}")]
        beside = [member for member in run.members if member.name.endswith(f".{LABELS}")]
        try:
            if len(tokens) != 1 or len(beside) > 1:
                raise ValueError(f"needs one {TOKENS}, has {', '.join(member.name for member in run.members[:8])}")
            if reason := problem(run, [*tokens, *beside], known, size):
                raise ValueError(reason)
            block = _block(file, tokens[0])
            if row_bytes not in (0, block.row_bytes):
                raise ValueError(f"rows of {block.row_bytes} bytes among rows of {row_bytes}")
            labels += _labels(file, beside[0], block.rows) if beside else [UNLABELLED] * block.rows
        except ValueError as error:
            known.add(run.key)
            bad_entries.append(BadEntry(run.key, run.offset, one_line(error, 300)))
            continue
        known.add(run.key)
        row_bytes = block.row_bytes
        blocks.append([run.key, block.offset, block.rows])
    record = {"file": path.name, "bytes": size, "sha256": files.sha256(path), "row_bytes": row_bytes or 1}
    record |= {"blocks": blocks, "labels": labels}
    record["defects"] = [vars(entry) for entry in sorted(bad_entries, key=lambda entry: entry.offset)]
    return Shard.from_record(str(path), record)


def _block(file: IO[bytes], member: tarfile.TarInfo) -> _Block:
    """Return where a block's rows are. Raises ValueError."""
    shape, dtype, start = _header(file, member)
    if len(shape) != 2 or dtype.str not in ("<u2", "<u4") or not all(shape):
        raise ValueError(f"{member.name} is {dtype} of shape {shape}, not uint16 or uint32 of [rows, n]")
    return _Block(start, shape[0], shape[1] * dtype.itemsize)


def _labels(file: IO[bytes], member: tarfile.TarInfo, rows: int) -> list[int]:
    """Return the labels of a block. Raises ValueError."""
    shape, dtype, start = _header(file, member)
    if shape != (rows,) or dtype.str not in ("|i1", "<i2", "<i4"):
        raise ValueError(f"{member.name} is {dtype} of shape {shape}, not int16 or int32 of [{rows}]")
    file.seek(start)
    labels = np.frombuffer(file.read(rows * dtype.itemsize), dtype)
    if labels.min() < UNLABELLED:
        raise ValueError(f"{member.name} has label {labels.min()}")
    return labels.tolist()


def _header(file: IO[bytes], member: tarfile.TarInfo) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape and type of an array in a tar, and where its values start. Raises ValueError."""
    file.seek(member.offset_data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a version that is not 1.0")
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # hostile headers raise exceptions of any type
        raise ValueError(f"{member.name} is no array ({one_line(error, 100)})") from None
    if dtype.hasobject:
        raise ValueError(f"{member.name} holds pickled objects, which are never read")
    start = file.tell()
    if in_columns or start + int(np.prod(shape, dtype=object)) * dtype.itemsize != member.offset_data + member.size:
        raise ValueError(f"{member.name} does not have the size that its header says")
    return shape, dtype, start
