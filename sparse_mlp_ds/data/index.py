"""The shard index: what every tar of a data set holds and where, so that any sample can be read alone."""

import json
import os
import re
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from sparse_mlp_ds.errors import UserError

FILE_NAME = "index.json"
FORMAT = 2


@dataclass(frozen=True)
class Defect:
    """Something in a tar that is no usable sample; the tar's other samples are not affected."""

    key: str
    offset: int
    """Of the member's header in the tar, bytes."""
    reason: str


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar. The columns run over its N samples in the tar's order, as arrays: a data set has millions."""

    path: str
    """Where it is: a file, a URL or a `pipe:` command."""
    name: str
    bytes: int
    sha256: str
    keys: np.ndarray
    """[N] UTF-8 bytes."""
    offsets: np.ndarray
    """[N] int64, where each image's bytes start in the tar."""
    sizes: np.ndarray
    """[N] int64, bytes of each image."""
    labels: np.ndarray
    """[N] int32."""
    defects: tuple[Defect, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, place: int) -> str:
        """Return a sample's key."""
        return self.keys[place].decode()

    def record(self) -> dict[str, Any]:
        """Return the tar's entry in index.json."""
        return {
            "file": self.name,
            "samples": len(self),
            "bytes": self.bytes,
            "sha256": self.sha256,
            "keys": [key.decode() for key in self.keys],
            "offsets": self.offsets.tolist(),
            "sizes": self.sizes.tolist(),
            "labels": self.labels.tolist(),
            "defects": [vars(defect) for defect in self.defects],
        }


def shard(path: str, record: dict[str, Any]) -> Shard:
    """Return the tar at `path` as an entry of index.json describes it. Raises ValueError."""
    columns = [
        np.array([key.encode() for key in record["keys"]], dtype=bytes),
        np.array(record["offsets"], dtype=np.int64),
        np.array(record["sizes"], dtype=np.int64),
        np.array(record["labels"], dtype=np.int32),
    ]
    if {column.shape for column in columns} != {(len(record["keys"]),)}:
        raise ValueError(f"shard {record['file']!r} has lists of different lengths")
    _, offsets, sizes, _ = columns
    if ((offsets < 0) | (sizes < 0) | (offsets > record["bytes"] - sizes)).any():  # a sum could overflow
        raise ValueError(f"shard {record['file']!r} has samples outside its {record['bytes']} bytes")
    if not re.fullmatch("[0-9a-f]{64}", record["sha256"]):
        raise ValueError(f"shard {record['file']!r} has no sha256")
    defects = tuple(Defect(**defect) for defect in record["defects"])
    return Shard(path, record["file"], int(record["bytes"]), record["sha256"], *columns, defects)


@dataclass(frozen=True, eq=False)
class Index:
    """A data set: its classes and shards."""

    source: str
    """What it was read from: a folder, or a URL's."""
    classes: list[str]
    """Class names; label n is classes[n]."""
    shards: list[Shard]
    plan: str = ""
    """Fingerprint of what `shards make` made it from, by which it knows its own work."""

    def __post_init__(self):
        object.__setattr__(self, "_starts", np.array(list(accumulate(map(len, self.shards), initial=0))))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, sample: int) -> tuple[Shard, int]:
        """Return the shard that holds a sample and its number there; samples are numbered through all shards."""
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self.shards[number], int(sample - self._starts[number])

    def thinned(self, limit: int) -> "Index":
        """Return an index of at most `limit` samples, every so many-th of this one's."""
        step, thin = -(-len(self) // limit), []
        for one, first in zip(self.shards, self._starts.tolist(), strict=False):
            kept = slice(-first % step, None, step)
            columns = {name: getattr(one, name)[kept] for name in ("keys", "offsets", "sizes", "labels")}
            thin.append(replace(one, **columns))
        return replace(self, shards=thin)

    def record(self) -> dict[str, Any]:
        """Return what index.json holds."""
        return {
            "format": FORMAT,
            "samples": len(self),
            "bytes": sum(one.bytes for one in self.shards),
            "classes": self.classes,
            "plan": self.plan,
            "shards": [one.record() for one in self.shards],
        }

    def save(self, folder: Path) -> None:
        """Write index.json beside the tars; a reader sees the old file or the new one, never a part."""
        partial = folder / f".{FILE_NAME}.{os.uname().nodename}.{os.getpid()}"
        with partial.open("w") as file:
            json.dump(self.record(), file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / FILE_NAME)


def parse(text: str | bytes, source: str, separator: str = "/") -> Index:
    """Return the index of the tars under `source` from index.json's text. Raises UserError."""
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        for one in _list(record["shards"]):
            if Path(one["file"]).name != one["file"]:
                raise ValueError(f"shard name {one['file']!r} leaves the folder")
            if not (one["file"].endswith(".tar") and one["file"].isprintable()):
                raise ValueError(f"shard name {one['file']!r} is no tar's")
        shards = [shard(f"{source.rstrip('/')}{separator}{one['file']}", one) for one in record["shards"]]
        classes = [str(name) for name in _list(record["classes"])]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        where = f"{source.rstrip('/')}/{FILE_NAME}"
        said = " ".join(str(error).split())
        raise UserError(f"{where}: damaged ({said}); run `sparse-mlp-ds shards index {source}` again") from None
    return Index(source, classes, shards, str(record.get("plan", "")))


def _list(value: Any) -> list:
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__} where a list belongs")
    return value


def load(folder: Path) -> Index:
    """Read the index of a folder and compare it with the tars that are there. Raises UserError."""
    index = load_unchecked(folder)
    for one in index.shards:
        check_size(one)
    return index


def load_unchecked(folder: Path) -> Index:
    """Read the index of a folder, whatever became of its tars. Raises UserError."""
    path = folder / FILE_NAME
    if not path.is_file():
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder}: has tars but no index; run `sparse-mlp-ds shards index {folder}`")
        raise UserError(f"{folder}: no shards here; make them with `sparse-mlp-ds shards make SOURCE {folder.parent}`")
    return parse(path.read_bytes(), str(folder))


def check_size(one: Shard) -> None:
    """Raise UserError if a local tar is missing or has another size than the index says."""
    tar = Path(one.path)
    size = tar.stat().st_size if tar.is_file() else None
    if size != one.bytes:
        found = "is missing" if size is None else f"has {size} bytes, the index says {one.bytes}"
        raise UserError(f"{tar}: {found}; run `sparse-mlp-ds shards verify {tar.parent}`")


def join(indexes: list[Index]) -> Index:
    """Return several data sets as one, their samples numbered through all of them in order."""
    if len(indexes) == 1:
        return indexes[0]
    longest = max((index.classes for index in indexes), key=len)
    return Index(", ".join(i.source for i in indexes), longest, [one for index in indexes for one in index.shards])
