"""The shard index: what every tar of a data set holds and where, so that any sample can be read alone."""

import json
import os
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from sparse_mlp_ds.errors import UserError

FILE_NAME = "index.json"
FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One tar. The lists run over its samples, in the tar's order."""

    file: str
    bytes: int
    sha256: str
    keys: list[str]
    offsets: list[int]
    """Where each image's bytes start in the tar."""
    sizes: list[int]
    """Bytes of each image."""
    labels: list[int]


@dataclass(frozen=True)
class Index:
    """A data set: its folder, classes and shards."""

    folder: Path
    classes: list[str]
    """Class names; label n is classes[n]."""
    shards: list[Shard]

    def __post_init__(self):
        starts = list(accumulate((len(s.keys) for s in self.shards), initial=0))
        object.__setattr__(self, "_starts", np.array(starts))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, sample: int) -> tuple[Shard, int]:
        """Return the shard that holds a sample and its number there; samples are numbered through all shards."""
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self.shards[shard], int(sample - self._starts[shard])

    def save(self) -> None:
        """Write index.json beside the tars; a reader sees the old file or the new one, never a part."""
        record = {
            "format": FORMAT,
            "samples": len(self),
            "classes": self.classes,
            "shards": [{"samples": len(s.keys), **asdict(s)} for s in self.shards],
        }
        partial = self.folder / f".{FILE_NAME}.{os.getpid()}"
        partial.write_text(json.dumps(record, separators=(",", ":")))
        partial.replace(self.folder / FILE_NAME)


def load(folder: Path) -> Index:
    """Read a folder's index. Raises UserError saying how to make one, or what is wrong with it."""
    path = folder / FILE_NAME
    if not path.is_file():
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder}: has tars but no index; run `sparse-mlp-ds shards index {folder}`")
        raise UserError(f"{folder}: no shards here; make them with `sparse-mlp-ds shards make SOURCE {folder.parent}`")
    try:
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        shards = [Shard(**{k: v for k, v in s.items() if k != "samples"}) for s in record["shards"]]
        for shard in shards:
            lengths = {len(shard.keys), len(shard.offsets), len(shard.sizes), len(shard.labels)}
            if Path(shard.file).name != shard.file:
                raise ValueError(f"shard name {shard.file!r} leaves the folder")
            if len(lengths) != 1:
                raise ValueError(f"shard {shard.file!r} has lists of different lengths")
        index = Index(folder, record["classes"], shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); run `sparse-mlp-ds shards index {folder}` again") from None
    for shard in index.shards:
        tar = folder / shard.file
        size = tar.stat().st_size if tar.is_file() else None
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes, the index says {shard.bytes}"
            raise UserError(f"{tar}: {found}; run `sparse-mlp-ds shards verify {folder}`")
    return index


def check_labels(index: Index, classes: int) -> None:
    """Raise UserError naming the first sample whose label is not in 0 .. classes - 1."""
    for shard in index.shards:
        for key, label in zip(shard.keys, shard.labels, strict=True):
            if not 0 <= label < classes:
                raise UserError(
                    f"{index.folder / shard.file}: sample '{key}' has label {label}, outside the {classes} classes "
                    f"of data.classes; set data.classes to at least {label + 1} or remake the shards"
                )
