"""Images wherever they lie, without labels: files, folders of any depth, tars, and data sets with an index."""

import os
from pathlib import Path

import numpy as np

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.index import UNLABELLED, Index, Shard
from sparse_mlp_ds.data.sources import check_images
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards.file_index import file_indexes
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.scan import count_bad_entries, list_tars, scan


def index_of(path: Path, passed_over: PassedOver) -> Index:
    """Return an index of the images at a path.

    Args:
        path: An image; a tar; a folder with an index.json, whose images are taken in its order; a folder with tars,
            which are taken sorted by name; or any other folder, of which all images in it and below it are taken in the
            order of their paths.
        passed_over: Counts what is there besides images.

    Raises UserError if there is no image, or if it cannot be read.
    """
    index = _index_of(path, passed_over)
    check_images(index)
    return index


def _index_of(path: Path, passed_over: PassedOver) -> Index:
    if path.is_dir():
        if (path / index_file.FILE_NAME).exists():
            return index_file.load(path)
        if any(path.glob("*.tar")):
            return _of_tars(path, list_tars(path, passed_over), passed_over)
        ((split, index),) = file_indexes(path, "images")
        passed_over.update([split.passed_over])
        return index
    if path.suffix == ".tar" and path.is_file():
        return _of_tars(path, [path], passed_over)
    return Index(str(path), [], [_of_file(path)])


def name_of(shard: Shard, position: int) -> str:
    """Return the name of an image: its path, or `TAR:KEY` for one in a tar."""
    if shard.files is not None:
        return os.path.join(shard.path, os.fsdecode(shard.files[position]))
    return f"{shard.path}:{shard.key(position)}"


def _of_tars(path: Path, tars: list[Path], passed_over: PassedOver) -> Index:
    try:
        shards = [scan(tar, passed_over) for tar in tars]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; remove it or make it readable") from None
    for shard in shards:
        count_bad_entries(shard, passed_over)
    if not any(map(len, shards)):
        raise UserError(f"{path}: no images in its tars{passed_over.clause()}")
    return Index(str(path), [], shards)


def _of_file(path: Path) -> Shard:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give an image, a tar or a folder") from None
    column = np.array([size], dtype=np.int64)
    return Shard(
        path=str(path.parent),
        name="",
        bytes=size,
        sha256="",
        keys=np.array([os.fsencode(path.stem)], dtype=bytes),
        offsets=np.zeros(1, np.int64),
        sizes=column,
        labels=np.array([UNLABELLED], dtype=np.int32),
        files=np.array([os.fsencode(path.name)], dtype=bytes),
    )
