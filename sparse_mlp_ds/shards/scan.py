"""Reading a tar's directory: its samples and where they are, and a reason for everything that is not a usable sample.

A sample is two members side by side, KEY.jpg (or .jpeg, .png, .webp) and KEY.cls, an ASCII class number. In a tar that
has no .cls at all, it is the image alone, which has no label.
"""

import codecs
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.data import class_names, reads
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.class_names import ClassList
from sparse_mlp_ds.data.index import FILE_NAME, UNLABELLED, BadEntry, Index, Shard
from sparse_mlp_ds.data.questions import QUESTIONS
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import row_scan
from sparse_mlp_ds.shards.passed_over import HIDDEN, PassedOver, is_hidden
from sparse_mlp_ds.shards.tar_members import Run, counted, problem, read_members, runs_of

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes of the member of a sample that is the image."""
_NAMES = 8  # of members that an entry names
_LABEL_DIGITS = 7  # a longer number is damaged: no data set has so many classes


def scan(path: Path, passed_over: PassedOver | None = None, source: str | None = None) -> Shard:
    """Index one tar. Damage does not raise: what is not a usable sample becomes one of the shard's bad entries.

    The tar may hold images, or rows of tokens.

    Args:
        path: The tar.
        passed_over: Counts members that nobody takes for samples: hidden ones, and what is neither a file nor a link.
        source: The tar's name in examples, if `path` is a copy.
    """
    passed_over, source = PassedOver() if passed_over is None else passed_over, source or str(path)
    with reads.reading(str(path)):
        return (
            row_scan.scan(path, passed_over, source) if row_scan.holds_rows(path) else _scan(path, passed_over, source)
        )


def _scan(path: Path, passed_over: PassedOver, source: str) -> Shard:
    columns: dict[str, list[Any]] = {"keys": [], "offsets": [], "sizes": [], "labels": []}
    bad_entries: list[BadEntry] = []
    known: set[str] = set()
    incomplete: dict[str, list[Run]] = {}
    size, labelled = path.stat().st_size, _has_labels(path)
    for run in runs_of(counted(read_members(path, bad_entries), passed_over, source)):
        images = [m for m in run.members if _suffix(m) in IMAGE_SUFFIXES]
        classes = [m for m in run.members if _suffix(m) == "cls"]
        if len(images) != 1 or len(classes) != labelled:
            incomplete.setdefault(run.key, []).append(run)
            continue
        reason = problem(run, [*images, *classes], known, size) or ("" if images[0].size else "empty image")
        known.add(run.key)
        label = _label(path, classes[0]) if labelled and not reason else UNLABELLED
        if isinstance(label, bytes):
            reason = f"label is not a class number, has {label!r}"[:200]
        if reason:
            bad_entries.append(BadEntry(run.key, run.offset, reason))
            continue
        columns["keys"].append(run.key)
        columns["offsets"].append(images[0].offset_data)
        columns["sizes"].append(images[0].size)
        columns["labels"].append(label)
    bad_entries += [_incomplete_entry(runs, labelled) for runs in incomplete.values()]
    record = columns | {"file": path.name, "bytes": size, "sha256": files.sha256(path)}
    record["defects"] = [vars(entry) for entry in sorted(bad_entries, key=lambda entry: entry.offset)]
    return Shard.from_record(str(path), record)


def _has_labels(path: Path) -> bool:
    """Return whether any member of a tar is a class number."""
    damage, runs = list[BadEntry](), 0
    for run in runs_of(member for member in read_members(path, damage) if not is_hidden(member.name)):
        if any(_suffix(member) == "cls" for member in run.members):
            return True
        runs += 1
    return bool(damage) and runs < 2  # what a damaged tar has lost behind its only image may have been its label


def list_tars(folder: Path, passed_over: PassedOver, suffixes: tuple[str, ...] = (".tar",)) -> list[Path]:
    """Return the tars in a folder, sorted by name. passed_over: Counts what else is there, apart from an index."""
    tars = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_hidden(path.name):
            passed_over.add(HIDDEN, path)
        elif path.is_dir():
            passed_over.add("folder", path)
        elif path.name.endswith(suffixes):
            tars.append(path)
        elif path.name not in (FILE_NAME, TOKENIZER, QUESTIONS):
            passed_over.add(
                f"no tar by its suffix {path.suffix}" if path.suffix else "no tar, by its lack of a suffix", path
            )
    return tars


def make_index(folder: Path, classes: list[str] | None = None, passed_over: PassedOver | None = None) -> Index:
    """Index the tars of a folder and write its index.json. Raises UserError if there is no sample in them.

    Args:
        folder: Folder of the tars.
        classes: Class names. Without them, those of an earlier index.json stay; if there are none, classes are named by
            their numbers.
        passed_over: Counts what is no tar, and what the tars hold besides samples and bad entries.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    try:
        paths = list_tars(folder, passed_over)
        if not paths:
            zipped = f" ({count} are gzipped: unpack them)" if (count := len(list(folder.glob("*.tar.gz")))) else ""
            raise UserError(
                f"{folder}: no .tar files here{zipped}; give the folder that holds them{passed_over.clause()}"
            )
        shards = [scan(path, passed_over) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; remove it or make it readable") from None
    index = joined(str(folder), shards, classes, passed_over)
    index.save(folder)
    return index


def joined(
    source: str, shards: list[Shard], classes: list[str] | None, passed_over: PassedOver, beside: Path | None = None
) -> Index:
    """Return the index of tars that were scanned. Raises UserError if they have no sample, or names do not suffice.

    Args:
        source: Folder or URL of the tars.
        shards: The tars.
        classes: Class names; None takes those in the index.json of a local folder, or else numbers.
        passed_over: Gets the bad entries if there is no sample.
        beside: Where the tokenizer.model of rows of tokens is, if not in the folder `source`.
    """
    labels = [shard.labels.max() for shard in shards if len(shard)]
    if not labels:
        for shard in shards:
            count_bad_entries(shard, passed_over)
        raise UserError(
            f"{source}: its {len(shards)} tars hold no sample, a KEY.jpg beside a KEY.cls{passed_over.clause()}"
        )
    text, largest = None, int(max(labels))
    if any(shard.row_bytes for shard in shards):
        if not all(shard.row_bytes for shard in shards):
            raise UserError(f"{source}: some tars hold images, some rows of tokens; keep them in folders of their own")
        shards = row_scan.alike(shards)
        text = row_scan.format_of(beside or Path(source), shards)
        largest = UNLABELLED if text.packing == "spans" else largest  # there, labels are no classes
    agreed, _ = kept_names([Path(source)], largest, classes)
    return Index(source, agreed, shards, text=text)


def count_bad_entries(shard: Shard, passed_over: PassedOver, source: str | None = None) -> None:
    """Count a tar's bad entries by the first words of their reasons.

    Args:
        shard: The tar.
        passed_over: Counts them.
        source: The tar's name in examples, if `shard.path` is a copy.
    """
    for entry in shard.bad_entries:
        reason = re.split(r", | \(", entry.reason)[0]
        detail = entry.reason.removeprefix(reason)
        passed_over.add(reason, f"{source or shard.path}: {entry.key!r} at offset {entry.offset}{detail}")


def kept_names(folders: Iterable[Path], largest: int, classes: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the class names of tars, and a remark on each folder that has none where another one has them.

    Args:
        folders: Where the tars are.
        largest: Largest label in the tars; UNLABELLED if none has one, and then there need be no names.
        classes: The names, if they are given; otherwise those in the index.json of each folder count, and where there
            are none, numbers.

    Raises UserError if the folders' names disagree, or if there are fewer names than labels.
    """
    given = {folder: index_file.names(folder) if classes is None else classes for folder in sorted(folders)}
    count = max([largest + 1, *map(len, given.values())])
    numbers = class_names.filled([], count)
    lists = [ClassList(str(folder), names or numbers) for folder, names in given.items()]
    return class_names.agree(lists, count, f"has label {largest}")


def _incomplete_entry(runs: list[Run], labelled: bool) -> BadEntry:
    """Return what is wrong with a key none of whose runs of members is a sample.

    labelled: whether a sample has a class number in this tar.
    """
    first = runs[0]
    if len(runs) > 1:
        return BadEntry(first.key, first.offset, "members of one sample are not side by side")
    names = " ".join(", ".join(m.name for m in first.members[:_NAMES]).split())
    more = f" and {len(first.members) - _NAMES} more" if len(first.members) > _NAMES else ""
    if any("." in _suffix(m) and _suffix(m).endswith(IMAGE_SUFFIXES) for m in first.members):
        more += "; a key ends at the first dot of the name"
    needed = "one image and one .cls side by side" if labelled else "one image"
    return BadEntry(first.key, first.offset, f"needs {needed}, has {names}{more}")


def _suffix(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _label(path: Path, member: tarfile.TarInfo) -> int | bytes:
    """Return the class number that a .cls member holds; if it holds none, its first bytes."""
    with path.open("rb") as file:
        file.seek(member.offset_data)
        text = file.read(min(member.size, 32)).removeprefix(codecs.BOM_UTF8).strip()
    return int(text) if text.isdigit() and len(text) <= _LABEL_DIGITS else text
