"""Texts of users: documents in .txt files, and tables of texts, pairs and labels in .jsonl, .tsv and .csv files."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.shards.image_folder import TEST, TRAINING, VALIDATION, entries, files_in
from sparse_mlp_ds.shards.passed_over import PassedOver

SUFFIXES = ("txt", "jsonl", "tsv", "csv")
"""Suffixes of the files that are read; each may be followed by one of those in PACKED."""
PACKED: dict[str, Callable[..., Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
"""Suffixes of packed files, and what opens them."""
NO_LABEL = ("", "-", "-1")
"""What stands in the column of labels for a text without one: `-` in SNLI and MNLI, `-1` in GLUE's test sets."""
_FIELD = 1 << 27  # characters that a column of a table may have
_DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True, slots=True)
class RawText:
    """A text, or a pair of texts, with its label."""

    text: str
    """The text, or the first one of a pair."""
    pair: str | None = None
    """The second text of a pair."""
    label: str = ""
    """Name of its class; empty for none."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read; in .jsonl files, which keys."""

    text: str = "text"
    """Column of the texts."""
    pair: str | None = None
    """Column of each pair's second text."""
    label: str | None = None
    """Column of the names of classes."""

    @property
    def wanted(self) -> list[str]:
        """All columns that are read."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]


def splits(source: Path, passed_over: PassedOver) -> dict[str, list[Path]]:
    """Return the files of the splits `train` and `val`, or {"": all files} if the source is not divided.

    A folder is divided if files or folders in it are called train and val, or test, whatever their suffix.

    Args:
        source: A file, or a folder with files at any depth.
        passed_over: Counts what in the folder is no text.

    Raises UserError if there is no text.
    """
    if source.is_file():
        if _suffixes(source)[0] not in SUFFIXES:
            raise UserError(
                f"{source}: no text by its suffix; give {', '.join(SUFFIXES)}, also packed (.gz, .bz2, .xz)"
            )
        return {"": [source]}
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder; give the texts")
    beside = PassedOver()
    folders, files = entries(source, beside)
    named: dict[str, list[Path]] = {}
    for path in [*folders, *(path for path in files if _suffixes(path)[0] in SUFFIXES)]:
        named.setdefault(path.name.split(".")[0].casefold(), []).append(path)
    train, val, test = (
        [path for name in names for path in named.get(name, ())] for names in (TRAINING, VALIDATION, TEST)
    )
    chosen = {"train": train, "val": val or test} if train and (val or test) else {"": [*folders, *files]}
    for path in [*folders, *files]:
        if not any(path in paths for paths in chosen.values()):
            beside.add("beside the splits that are made", path)
    found = {name: _texts(source, paths, beside) for name, paths in chosen.items()}
    passed_over.update([beside])
    return found


def read(paths: Iterable[Path], columns: Columns, passed_over: PassedOver | None = None) -> Iterator[RawText]:
    """Yield the texts of files. A .txt file is one document; each row of a table or line of a .jsonl file is a text.

    Args:
        paths: The files.
        columns: Which columns of tables are read.
        passed_over: Counts texts that are empty.

    Raises UserError if a file cannot be read, is not UTF-8, or has no such columns.
    """
    for path in paths:
        with _explained(path):
            for line, fields in _READERS[_suffixes(path)[0]](path, columns):
                label = "" if columns.label is None else fields[columns.label]
                raw = RawText(fields[columns.text], columns.pair and fields[columns.pair], label)
                if not raw.text.strip() or (raw.pair is not None and not raw.pair.strip()):
                    if passed_over is not None:
                        passed_over.add("empty text", f"{path}, line {line}")
                    continue
                _check(path, line, raw)
                yield RawText(raw.text, raw.pair, "" if label in NO_LABEL else label)


def content_of(path: Path) -> str:
    """Return the text of a file, packed or not. Raises UserError if it cannot be read, or is not UTF-8."""
    with _explained(path), _opened(path) as file:
        return file.read()


def _texts(source: Path, paths: list[Path], passed_over: PassedOver) -> list[Path]:
    """Return the files of texts among files and in folders. Raises UserError if there are none."""
    every = [one for path in paths for one in (files_in(path, passed_over, ()) if path.is_dir() else [path])]
    found = []
    for path in sorted(every):
        if _suffixes(path)[0] in SUFFIXES:
            found.append(path)
        else:
            passed_over.add(
                f"no text by its suffix {path.suffix}" if path.suffix else "no text, by its lack of one", path
            )
    if not found:
        raise UserError(f"{source}: no texts here; a text is a {', '.join(SUFFIXES)}{passed_over.clause()}")
    return found


def _suffixes(path: Path) -> tuple[str, str]:
    """Return a file's suffix and that of its packing; empty where it has none."""
    *_, kind, last = ("", "", *path.name.lower().split(".")[1:])
    return (kind, last) if last in PACKED else (last, "")


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Open a file of text, packed or not, without a byte order mark and with its line ends as they are."""
    packing = _suffixes(path)[1]
    with PACKED.get(packing, open)(path, "rb") as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        yield text


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a file that cannot be read raises into a UserError that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: cannot be read ({one_line(error, 200)}); make it readable, or remove it") from None


def _documents(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    if columns.wanted != [Columns.text]:
        raise UserError(f"{path}: has no columns; give a .jsonl, .tsv or .csv file for {', '.join(columns.wanted)}")
    with _opened(path) as file:
        yield 1, {columns.text: file.read()}


def _json_lines(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"a {type(record).__name__}")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is no JSON object ({one_line(error, 100)}); mend it") from None
            _check_columns(f"{path}: line {number}", columns, list(record))
            yield number, {name: _as_text(record[name]) for name in columns.wanted}


def _table(path: Path, columns: Columns) -> Iterator[tuple[int, dict[str, str]]]:
    tabs = _suffixes(path)[0] == "tsv"  # in which quotes are characters like any other
    csv.field_size_limit(_FIELD)
    with _opened(path) as file:
        reader = csv.reader(
            file, "excel-tab" if tabs else "excel", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
        )
        try:
            head = next(reader, [])
            _check_columns(str(path), columns, head)
            places = {name: head.index(name) for name in columns.wanted}
            for row in reader:
                if not row:
                    continue
                if len(row) != len(head):
                    raise csv.Error(f"{len(row)} columns, the first line names {len(head)}")
                yield reader.line_num, {name: row[place] for name, place in places.items()}
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num} cannot be read ({error}); mend it") from None


_READERS = {"txt": _documents, "jsonl": _json_lines, "tsv": _table, "csv": _table}


def _as_text(value: Any) -> str:
    """Return what stands in a .jsonl file as text: null and a missing value are empty, a whole number has no point."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _check_columns(where: str, columns: Columns, there: list[str]) -> None:
    for name in columns.wanted:
        if name not in there:
            names = ", ".join(map(str, there))[:200] or "none"
            raise UserError(f"{where}: no column '{name}' (there are {names}); name it with --text, --pair or --label")


def _check(path: Path, line: int, raw: RawText) -> None:
    """Raise UserError for halves of characters, which a .jsonl file can spell and UTF-8 cannot."""
    try:
        f"{raw.text}{raw.pair}{raw.label}".encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: line {line} has half of a character, such as \\ud800; mend it") from None
