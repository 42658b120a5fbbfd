"""The questions behind rows of `spans`: texts, answers, and which characters each token of a window has.

They lie in questions.jsonl beside index.json, one question a line, and are read where answers are scored. A context
that is null is that of the line before, and offsets that are null are those of the window before.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError, one_line

QUESTIONS = "questions.jsonl"
"""Name of the file."""


@dataclass(frozen=True)
class Window:
    """A row of tokens: `[CLS]`, a question, `[SEP]`, a part of its context, `[SEP]`, and padding."""

    row: int
    """The row's number in the data set, through all of its tars."""
    first: int
    """Place in the row of the context's first token."""
    offsets: list[tuple[int, int]]
    """For each token of the context in the row, where its characters begin and end in the context."""


@dataclass(frozen=True)
class Question:
    """A question about a context."""

    id: str
    """Its name in the source."""
    question: str
    """Its text."""
    context: str
    """The text that the answer is a part of."""
    answers: list[str]
    """Texts that count as right; none if the context does not answer it."""
    windows: list[Window]
    """The rows that it was made into."""


def save(path: Path, questions: Iterable[Question]) -> None:
    """Write questions to a file, a context and the offsets of its tokens only where they change. Raises OSError."""
    context, offsets = None, None
    with files.replacing(path, durable=True) as file:
        for question in questions:
            record = asdict(question)
            if question.context == context:
                record["context"] = None
            for window, written in zip(question.windows, record["windows"], strict=True):
                if window.offsets == offsets:
                    written["offsets"] = None
                offsets = window.offsets
            context = question.context
            file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")


def load(folder: Path, rows: int) -> list[Question]:
    """Return the questions of a data set in the order of their rows.

    Args:
        folder: Folder of the data set.
        rows: Number of its rows.

    Raises UserError if the file is missing or damaged, or if it is of a different number of rows.
    """
    path = folder / QUESTIONS
    fix = "make the data set again with `sparse-mlp-ds shards make squad`"
    try:
        questions = list(_parsed(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {fix}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({one_line(error, 200)}); {fix}") from None
    if [window.row for question in questions for window in question.windows] != list(range(rows)):
        raise UserError(f"{path}: its windows are not the {rows} rows of the data set; {fix}")
    return questions


def _parsed(content: str) -> Iterator[Question]:
    """Yield the questions of a file. Raises ValueError, KeyError or TypeError."""
    context, offsets = "", list[tuple[int, int]]()
    for record in map(json.loads, filter(None, content.split("\n"))):
        context, windows = context if record["context"] is None else str(record["context"]), list[Window]()
        for one in record["windows"]:
            if one["offsets"] is not None:
                offsets = [(int(start), int(end)) for start, end in one["offsets"]]
            windows.append(Window(int(one["row"]), int(one["first"]), offsets))
        answers = [str(answer) for answer in record["answers"]]
        yield Question(str(record["id"]), str(record["question"]), context, answers, windows)
