"""What is said of a data set of tars once it is indexed: its size, its bad entries, and what could spoil training."""

import numpy as np

from sparse_mlp_ds.data.index import UNLABELLED, Index
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.scan import count_bad_entries

FILES = "files of their own"


def summary(index: Index) -> list[str]:
    """Return the lines about a data set. Raises UserError if it has no sample."""
    bad_entries = PassedOver()
    for shard in index.shards:
        count_bad_entries(shard, bad_entries)
    if not len(index):
        raise UserError(f"{index.source}: not one {_kind(index)} can be used{bad_entries.clause()}")
    bad = bad_entries.counts.total()
    classes = f"{len(index.classes)} classes" if index.classes else "without labels"
    if index.text and index.text.packing == "spans":
        classes = "with the places of answers"
    of = f" of {index.text.length} tokens" if index.text else ""
    size = f"{index.source}: {len(index)} {_kind(index)}s{of} in {_tars(index)}, {classes}"
    if bad:
        size += f"; not usable: {bad}, each named by `sparse-mlp-ds shards verify {index.source}`"
    return [*bad_entries.lines(), size, *(f"{index.source}: {remark}" for remark in _remarks(index))]


def _kind(index: Index) -> str:
    return "row" if index.text else "image"


def _tars(index: Index) -> str:
    return f"{len(index.shards)} tars" if all(shard.files is None for shard in index.shards) else FILES


def _remarks(index: Index) -> list[str]:
    """Return a line for everything about an index's classes that can spoil training."""
    labels = np.concatenate([shard.labels for shard in index.shards])
    if (labels == UNLABELLED).all() or (index.text and index.text.packing == "spans"):
        return []
    kind = _kind(index)
    empty = sorted(set(range(len(index.classes))).difference(labels.tolist()))
    lines = []
    if 0 < (without := int((labels == UNLABELLED).sum())) < len(labels):
        lines.append(f"{without} {kind}s have no label, so only pretraining can use them; keep them in a folder apart")
    if empty:
        lines.append(
            f"{len(empty)} of {len(index.classes)} classes have no {kind}, such as {index.classes[empty[0]]!a}"
        )
    if len(index.classes) == 1:
        lines.append(
            f"there is one class only, {index.classes[0]!a}"
            + ("" if index.text else "; of a folder of images, the folders right in it are classes")
        )
    if sorted_by_class(index) and _tars(index) != FILES:  # which always are shuffled together
        lines.append(
            f"the {kind}s are sorted by class; keep data.shuffle_shards 0"
            + ("" if index.text else ", or mix them with `sparse-mlp-ds shards make wds`")
        )
    return lines


def sorted_by_class(index: Index) -> bool:
    """Return whether the samples are sorted by class.

    They are if neighbours share a class far more often than they would in random order.
    """
    labels = np.concatenate([shard.labels for shard in index.shards])
    _, counts = np.unique(labels, return_counts=True)
    if len(counts) < 2:
        return False
    frequency = counts / len(labels)
    return bool((labels[1:] == labels[:-1]).mean() > (1 + (frequency**2).sum()) / 2)
