"""The shard index: which samples every tar of a data set holds and where, so that each sample can be read alone."""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from sparse_mlp_ds import files
from sparse_mlp_ds.data.text_format import TextFormat, row_blocks, row_columns
from sparse_mlp_ds.errors import UserError, one_line

FILE_NAME = "index.json"
FORMAT, TEXT_FORMAT = 2, 3
"""Versions of the layout of index.json: of images, and of rows of tokens."""
FORMATS = (FORMAT, TEXT_FORMAT)
"""Versions that are read."""
UNLABELLED = -1
"""Label of a sample that has none: pretraining needs no labels."""


@dataclass(frozen=True)
class BadEntry:
    """Something in a tar that is not a usable sample; the tar's other samples are not affected."""

    key: str
    """WebDataset key; empty if it could not be read."""
    offset: int
    """Where the entry's header starts in the tar, bytes."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar of N samples. What belongs to a sample is kept in arrays, because a data set has millions of samples."""

    path: str
    """Where the tar is: a file, a URL or a `pipe:` command."""
    name: str
    """The tar's file name."""
    bytes: int
    """The tar's size."""
    sha256: str
    """Hash of the tar, hexadecimal."""
    keys: np.ndarray
    """[N] WebDataset keys, UTF-8 bytes, in the tar's order."""
    offsets: np.ndarray
    """[N] int64, where each image or row of tokens starts in the tar, bytes."""
    sizes: np.ndarray
    """[N] int64, size of each image or row, bytes."""
    labels: np.ndarray
    """[N] int32, number of each sample's class, or UNLABELLED. In a row with a question and a window of its context:
    start * n + end of the answer, both as places in the row of n tokens; 0 if the answer is not there."""
    bad_entries: tuple[BadEntry, ...] = ()
    """What in the tar is not a usable sample; `defects` in index.json."""
    files: np.ndarray | None = None
    """[N] paths of the images below the folder `path`, UTF-8 bytes, if they lie there as files of their own; None for
    images in a tar."""
    row_bytes: int = 0
    """Size of a row of tokens, bytes; 0 for images."""

    @classmethod
    def from_record(cls, path: str, record: dict[str, Any]) -> "Shard":
        """Return the tar at `path` as its entry in index.json describes it. Raises ValueError."""
        record = record | (row_columns(record) if "blocks" in record else {})
        keys = np.array([key.encode() for key in record["keys"]], dtype=bytes)
        offsets = np.array(record["offsets"], dtype=np.int64)
        sizes = np.array(record["sizes"], dtype=np.int64)
        labels = np.array(record["labels"], dtype=np.int32)
        if {column.shape for column in (keys, offsets, sizes, labels)} != {(len(record["keys"]),)}:
            raise ValueError(f"shard {record['file']!r} has lists of different lengths")
        if ((offsets < 0) | (sizes < 0) | (offsets > record["bytes"] - sizes)).any():  # a sum could overflow
            raise ValueError(f"shard {record['file']!r} has samples outside its {record['bytes']} bytes")
        if not re.fullmatch("[0-9a-f]{64}", record["sha256"]):
            raise ValueError(f"shard {record['file']!r} has no sha256")
        bad_entries = tuple(BadEntry(**entry) for entry in record["defects"])
        size, digest = int(record["bytes"]), record["sha256"]
        files = _paths(record["files"], len(keys)) if "files" in record else None
        row_bytes = int(record.get("row_bytes", 0))
        return cls(path, record["file"], size, digest, keys, offsets, sizes, labels, bad_entries, files, row_bytes)

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, position: int) -> str:
        """Return the WebDataset key of the sample at `position` in the tar."""
        return self.keys[position].decode()

    def chosen(self, keep: np.ndarray) -> "Shard":
        """Return the tar with some of its samples. keep: [N] bool, which ones."""
        columns = {name: getattr(self, name) for name in ("keys", "offsets", "sizes", "labels", "files")}
        return replace(self, **{name: column[keep] for name, column in columns.items() if column is not None})

    def record(self) -> dict[str, Any]:
        """Return the tar's entry in index.json."""
        return {
            "file": self.name,
            "samples": len(self),
            "bytes": self.bytes,
            "sha256": self.sha256,
            **self._columns(),
            "defects": [vars(entry) for entry in self.bad_entries],
        } | ({} if self.files is None else {"files": [path.decode() for path in self.files]})

    def _columns(self) -> dict[str, Any]:
        """Return the columns as index.json holds them; those of rows of tokens follow from their blocks."""
        keys, offsets, labels = [key.decode() for key in self.keys], self.offsets.tolist(), self.labels.tolist()
        if self.row_bytes:
            labels = labels if set(labels) != {UNLABELLED} else []
            return {"row_bytes": self.row_bytes, "blocks": row_blocks(keys, offsets), "labels": labels}
        return {"keys": keys, "offsets": offsets, "sizes": self.sizes.tolist(), "labels": labels}


@dataclass(frozen=True, eq=False)
class Index:
    """A data set: its classes and shards."""

    source: str
    """Where the tars are: a folder, a URL or a pattern."""
    classes: list[str]
    """Class names; label n is classes[n]."""
    shards: list[Shard]
    """The tars. Samples are numbered through all of them, in this order."""
    plan: str = ""
    """Hash of the images and options that `shards make` made the data set from. By it, `shards make` recognises its own
    output."""
    text: TextFormat | None = None
    """What the rows of a text data set are; None for images."""

    @cached_property
    def _starts(self) -> np.ndarray:
        """[shards + 1], number of each tar's first sample, and of all samples."""
        return np.array(list(accumulate(map(len, self.shards), initial=0)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, sample: int) -> tuple[Shard, int]:
        """Return the tar that holds a sample, and the sample's position in it."""
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return self.shards[number], int(sample - self._starts[number])

    def label(self, sample: int) -> int:
        """Return the label of a sample."""
        shard, position = self.locate(sample)
        return int(shard.labels[position])

    def thinned(self, limit: int) -> "Index":
        """Return an index of at most `limit` samples: every n-th sample of this one, for the smallest possible n."""
        return self.chosen(np.arange(len(self)) % -(-len(self) // limit) == 0)

    def chosen(self, keep: np.ndarray) -> "Index":
        """Return an index of some of the samples, in the same order. keep: [samples] bool, which ones."""
        shards = zip(self.shards, np.split(keep, self._starts[1:-1]), strict=False)
        return replace(self, shards=[shard.chosen(kept) for shard, kept in shards])

    def record(self) -> dict[str, Any]:
        """Return the content of index.json."""
        return {
            "format": TEXT_FORMAT if self.text else FORMAT,
            **({"text": self.text.record()} if self.text else {}),
            "samples": len(self),
            "bytes": sum(shard.bytes for shard in self.shards),
            "classes": self.classes,
            "plan": self.plan,
            "shards": [shard.record() for shard in self.shards],
        }

    def as_json(self) -> str:
        """Return the content of index.json as it is written."""
        return json.dumps(self.record(), separators=(",", ":"))

    def save(self, folder: Path) -> None:
        """Write index.json beside the tars; a reader sees the old file or the new one, never a part of one."""
        files.replace(folder / FILE_NAME, self.as_json(), durable=True)


def parse(content: str | bytes, source: str) -> Index:
    """Return the index of the tars under `source` from the content of index.json. Raises UserError."""
    try:
        record = json.loads(content)
        if record["format"] not in FORMATS:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT} and {TEXT_FORMAT}")
        text = TextFormat.from_record(record["text"]) if record["format"] == TEXT_FORMAT else None
        for entry in _list(record["shards"]):
            if "files" in entry:  # whose paths are below the folder itself
                entry["file"] = ""
                continue
            if Path(entry["file"]).name != entry["file"]:
                raise ValueError(f"shard name {entry['file']!r} leaves the folder")
            if not (entry["file"].endswith(".tar") and entry["file"].isprintable()):
                raise ValueError(f"shard name {entry['file']!r} is no tar's")
        folder = source.rstrip("/")
        shards = [Shard.from_record(f"{folder}/{entry['file']}".rstrip("/"), entry) for entry in record["shards"]]
        if any(shard.row_bytes != (text.row_bytes if text else 0) for shard in shards):
            raise ValueError("rows of different sizes")
        classes = [str(name) for name in _list(record["classes"])]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        where = f"{source.rstrip('/')}/{FILE_NAME}"
        raise UserError(
            f"{where}: damaged ({one_line(error)}); run `sparse-mlp-ds shards index {source}` again"
        ) from None
    return Index(source, classes, shards, str(record.get("plan", "")), text)


def load(folder: Path) -> Index:
    """Read the index of a folder and check that its tars are there, each with its size. Raises UserError."""
    index = load_unchecked(folder)
    for shard in index.shards:
        check_size(shard)
    return index


def load_unchecked(folder: Path) -> Index:
    """Read the index of a folder without a look at its tars. Raises UserError."""
    path = folder / FILE_NAME
    if not path.is_file():
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder}: has tars but no index; run `sparse-mlp-ds shards index {folder}`")
        raise UserError(f"{folder}: no shards here; make them with `sparse-mlp-ds shards make SOURCE {folder.parent}`")
    return parse(path.read_bytes(), str(folder))


def names(folder: Path) -> list[str]:
    """Return the class names in a folder's index.json, even if the rest of it is damaged.

    None are returned if there are none, or if classes are only called by their numbers.
    """
    try:
        record = json.loads((folder / FILE_NAME).read_bytes())
        found = [str(name) for name in _list(record["classes"])] if record["format"] in FORMATS else []
        return found if found != [str(label) for label in range(len(found))] else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def text_of(folder: Path) -> TextFormat | None:
    """Return what a folder's rows are by its index.json, even if the rest of it is damaged; None if it does not say."""
    try:
        return TextFormat.from_record(json.loads((folder / FILE_NAME).read_bytes())["text"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def check_size(shard: Shard) -> None:
    """Raise UserError if a local tar is missing, cannot be opened, or differs in size from what the index says."""
    tar = Path(shard.path)
    if shard.files is not None:
        if len(shard) and not (tar / shard.files[0].decode()).is_file():
            raise UserError(f"{tar / shard.files[0].decode()}: is missing; index the folder's images again")
        return
    try:
        size = tar.stat().st_size if tar.is_file() else None
        if size is not None:
            tar.open("rb").close()
    except OSError as error:
        raise UserError(f"{tar}: {error.strerror}; make it readable for this user") from None
    if size != shard.bytes:
        problem = "is missing" if size is None else f"has {size} bytes, the index says {shard.bytes}"
        raise UserError(f"{tar}: {problem}; run `sparse-mlp-ds shards verify {tar.parent}`")


def join(indexes: list[Index]) -> Index:
    """Return several data sets as one; samples are numbered through all of them, in order.

    Whether their lists of class names agree is for `class_names.agree` to say; here, the longest counts. Whether their
    rows of tokens agree is for `sources.open_sources` to say.
    """
    if len(indexes) == 1:
        return indexes[0]
    if not indexes:
        return Index("no source", [], [])
    longest = max((index.classes for index in indexes), key=len)
    shards = [shard for index in indexes for shard in index.shards]
    return Index(", ".join(index.source for index in indexes), longest, shards, text=indexes[0].text)


def _paths(values: Any, count: int) -> np.ndarray:
    """Return the paths of a folder's images. Raises ValueError unless all of them stay below the folder."""
    paths = _list(values)
    for path in paths:
        if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise ValueError(f"image {path!r} leaves the folder")
    if len(paths) != count:
        raise ValueError(f"there are {len(paths)} paths for {count} images")
    return np.array([path.encode() for path in paths], dtype=bytes)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__} where a list belongs")
    return value
