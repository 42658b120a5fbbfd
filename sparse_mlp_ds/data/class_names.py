"""Class names: whether several lists of them mean the same, so that a label is the same class in all of them.

A label is a number, and label n is the n-th name of its list. Everything that brings two lists together (train and val,
the sources of a mixture, a model and shards, a checkpoint and the run that goes on from it) asks `agree`.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError

_LONGEST = 80  # characters of a name that a message shows
_DIGITS = 18  # a longer run of digits is a name like any other, not the number of a class
_NAME_THEM = "`sparse-mlp-ds shards index FOLDER --classes FILE`"


@dataclass(frozen=True)
class ClassList:
    """The class names of one data set or model, and what to call it in messages."""

    where: str
    """The data set or model, for example `data.val data/digits/val`."""
    names: Sequence[str]
    """Class names; label n is names[n]. A class without a name is called by its own number."""


def agree(lists: Sequence[ClassList], classes: int, limit: str) -> tuple[list[str], list[str]]:
    """Compare lists of class names number by number; what all of them say together is returned.

    Lists may be of different lengths: a data set without images of the last classes does not name them. Where one list
    has a name and another has only the class's own number, the labels may well mean the same: WebDataset tars of other
    programs hold numbers alone, and indexes of version 0.1.0 have lost their names. To refuse these would stop runs
    whose figures are right, and a guess would be silent; so they are believed, and a remark says which and how to make
    sure. Two different numbers for one label are a permutation, not a lack of names, and are refused.

    Args:
        lists: The lists; where only some have a name for a class, the first of these names counts.
        classes: Number of classes that there are.
        limit: What says so, for messages, for example `data.classes is 10`.

    Returns one name for each of the `classes`, and a remark for each list that is believed without a comparison. Raises
    UserError, one line that names the first pair that differs.
    """
    known: list[tuple[str, str]] = []  # for each class its name and which list has it
    for one in lists:
        for label, name in enumerate(one.names):
            if label == len(known):
                known.append((name, one.where))
                continue
            earlier, where = known[label]
            if _same(earlier, name) or (_is_unnamed(name, label) and not _is_number(earlier)):
                continue
            if not _is_unnamed(earlier, label) or _is_number(name):
                raise UserError(
                    f"{one.where}: class {label} is {_shown(name)}, but {_shown(earlier)} in {where}; use data of the "
                    f"same classes, or, if these are two names of one class, name it alike with {_NAME_THEM}"
                )
            known[label] = name, one.where
    _check_count(known, classes, limit)
    names = [name for name, _ in known]
    return filled(names, classes), [remark for one in lists for remark in _unnamed_there(one, known)]


def filled(names: Sequence[str], classes: int) -> list[str]:
    """Return one name for each of the `classes`: the first of `names`, and the class's number where they end."""
    return [*names[:classes], *(str(label) for label in range(len(names), classes))]


def ordered(names: Iterable[str]) -> list[str]:
    """Return class names in the order in which classes are numbered: numbers as numbers (2 before 10), text as text.

    Numbers are only sorted as such if all names are numbers. Sorted as text, the folders 0 to 11 would get the labels
    0, 1, 10, 11, 2, while WebDataset tars of the same images most likely have the label 2 for the class 2.
    """
    names = list(names)
    return sorted(names, key=lambda name: (int(name), name)) if all_numbers(names) else sorted(names)


def all_numbers(names: Sequence[str]) -> bool:
    """Return whether there are names and all of them are numbers."""
    return bool(names) and all(map(_is_number, names))


def shortened(names: Sequence[str]) -> str:
    """Return class names as text, without the middle of a long list; names that hold no text alone are escaped."""
    shown = [name if name.isprintable() else _shown(name) for name in names]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:11], "...", shown[-1]])


def read(path: Path) -> list[str]:
    """Read the file of the flag --classes: one class name per line, or the JSON of an index or of an exported model.

    Raises UserError.
    """
    fix = "give a file with one class name per line"
    text = files.read_text(path, "--classes", fix)
    if path.suffix == ".json":
        try:
            names = json.loads(text)["classes"]
            if not isinstance(names, list):
                raise TypeError
            return [str(name) for name in names]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"--classes {path}: names no classes; {fix}") from None
    names = text.splitlines()
    if empty := [number for number, name in enumerate(names, 1) if not name.strip()] or ([] if names else [1]):
        raise UserError(f"--classes {path}: line {empty[0]} is empty; {fix}")
    return names


def _check_count(known: Sequence[tuple[str, str]], classes: int, limit: str) -> None:
    """Raise UserError if real names are more than the classes, or end before them."""
    for label, (name, where) in enumerate(known[classes:], start=classes):
        if not _is_unnamed(name, label):  # of classes without a name, `data.bad_limit` decides by their images
            raise UserError(f"{where}: class {label} is {_shown(name)}, but {limit}; make both say the same")
    if len(known) < classes and any(not _is_unnamed(name, label) for label, (name, _) in enumerate(known)):
        raise UserError(
            f"{known[-1][1]}: {limit}, but {len(known)} classes are named (the last is {_shown(known[-1][0])}); "
            f"correct the number, or name all of them with {_NAME_THEM}"
        )


def _unnamed_there(one: ClassList, known: Sequence[tuple[str, str]]) -> list[str]:
    """Return a remark if a list has no name for a class that another list has a name for."""
    for label, (own, (name, where)) in enumerate(zip(one.names, known, strict=False)):
        if not _same(own, name):
            return [
                f"{one.where}: has no name for class {label}, which is {_shown(name)} in {where}; its labels are "
                f"believed to mean the same. To make sure, name its classes with {_NAME_THEM}"
            ]
    return []


def _same(one: str, other: str) -> bool:
    """Return whether two names are of one class: equal as numbers (007 is 7), or as text, however accents are coded."""
    if _is_number(one) and _is_number(other):
        return int(one) == int(other)
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= _DIGITS


def _is_unnamed(name: str, label: int) -> bool:
    """Return whether a class is only called by its own number, as the classes of tars without names are."""
    return _is_number(name) and int(name) == label


def _shown(name: str) -> str:
    return ascii(name[:_LONGEST])
