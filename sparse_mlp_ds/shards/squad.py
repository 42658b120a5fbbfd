"""SQuAD's files of questions (Rajpurkar et al., 2016 and 2018): each becomes windows on its context, one a row."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparse_mlp_ds import files
from sparse_mlp_ds.data import questions
from sparse_mlp_ds.data.questions import QUESTIONS, Question, Window
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.shards import packing, row_writer, text
from sparse_mlp_ds.shards.texts import content_of


class Asked(NamedTuple):
    """A question as it stands in a file."""

    id: str
    """Its name."""
    question: str
    """Its text."""
    answers: list[tuple[str, int]]
    """Texts that count as right, and where each begins in the context, characters."""


class Paragraph(NamedTuple):
    """A context and the questions about it."""

    context: str
    """Its text."""
    asked: list[Asked]
    """The questions."""


@dataclass(frozen=True)
class Options:
    """How questions become rows."""

    text: text.Options
    """Length of rows, tokenizer and tars; rows keep the order of the questions."""
    stride: int = 128
    """By how many tokens each window on a context begins after the one before it."""


def make(out: Path, sources: dict[str, Path], options: Options, report: text.Progress) -> list[text.Made]:
    """Write a folder of questions as rows, or one with train/ and val/; if it is there already, do nothing.

    A row is `[CLS]`, the question, `[SEP]`, a window on its context, `[SEP]`, and padding. Its label is start * n + end
    of the first answer's tokens in the row, both included; 0 if the answer is not whole in this window. Each folder has
    a file `questions.jsonl` with what is needed to score answers.

    Args:
        out: The folder.
        sources: SQuAD's JSON file of each split; with one file, its name is empty.
        options: How questions become rows.
        report: Is told how far it is.

    Raises UserError if a file is none of SQuAD's, or the folder holds something else.
    """
    content = {name: content_of(path) for name, path in sources.items()}
    hashes = [files.sha256_of([content[name].encode()]) for name in sources]
    plan, parts = text.plan_of([str(options.stride), *hashes], options.text), list(sources)
    if done := row_writer.finished(out, parts, plan):
        return [text.Made(index) for index in done]
    read = {name: parse(content[name], str(path)) for name, path in sources.items()}

    def fill(unfinished: text.Unfinished) -> str:
        paragraphs, asked, lost = read[unfinished.name], list[Question](), 0
        for number, paragraph in enumerate(paragraphs):
            report(f"{unfinished.name or out.name}: contexts", number, len(paragraphs))
            added, missing = _add(paragraph, unfinished.tokenizer, unfinished.rows, options.stride)
            asked, lost = asked + added, lost + missing
        questions.save(unfinished.folder / QUESTIONS, asked)
        answered = sum(bool(question.answers) for question in asked)
        told = f"{len(asked)} questions about {len(paragraphs)} contexts, {answered} of them with an answer"
        return f"{told}; {lost} answers are not whole in any window" if lost else told

    return text.build(out, parts, options.text, plan, report, lambda: _texts(read[parts[0]]), fill)


def parse(content: str, source: str) -> list[Paragraph]:
    """Return the contexts and questions of a file. Raises UserError.

    content: the file's text. source: its name, for messages.
    """
    try:
        record = json.loads(content)
        found = [_paragraph(one) for article in record["data"] for one in article["paragraphs"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{source}: is no file of SQuAD ({one_line(error, 200)}); give train-v2.0.json or so") from None
    if not any(paragraph.asked for paragraph in found):
        raise UserError(f"{source}: has no questions; give train-v2.0.json or so")
    return found


def _paragraph(record: dict[str, Any]) -> Paragraph:
    context, asked = str(record["context"]), []
    for one in record["qas"]:
        # SQuAD 2.0 gives plausible answers to questions that the context does not answer, which count as wrong.
        answers = [] if one.get("is_impossible") else [(str(a["text"]), int(a["answer_start"])) for a in one["answers"]]
        for answer, start in answers:
            if not answer or context[start : start + len(answer)] != answer:
                raise ValueError(f"question {one['id']}: answer {answer[:40]!r} is not at character {start}")
        asked.append(Asked(str(one["id"]), str(one["question"]).strip(), answers))
    return Paragraph(context, asked)


def _add(
    paragraph: Paragraph, tokenizer: Tokenizer, rows: row_writer.RowFile, stride: int
) -> tuple[list[Question], int]:
    """Append the rows of the questions about a context.

    Args:
        paragraph: The context and the questions.
        tokenizer: Makes their tokens.
        rows: Gets the rows.
        stride: see `Options`.

    Returns the questions with their windows, and how many answers are in none of them.
    """
    context, offsets = tokenizer.encode_with_offsets(paragraph.context)
    added, lost = [], 0
    for one in paragraph.asked:
        span, windows, found = _span(one, offsets), list[Window](), False
        for begin, end, first, row in packing.windows_of(rows.text, tokenizer.encode(one.question), context, stride):
            label = 0
            if span and begin <= span[0] and span[1] < end:
                label, found = (span[0] - begin + first) * rows.text.length + span[1] - begin + first, True
            windows.append(Window(rows.count, first, offsets[begin:end]))
            rows.add(row, label)
        lost += bool(one.answers) and not found
        added.append(Question(one.id, one.question, paragraph.context, [answer for answer, _ in one.answers], windows))
    return added, lost


def _span(one: Asked, offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Return the first and last token of a question's first answer in the context; None if it has no answer."""
    if not one.answers:
        return None
    answer, start = one.answers[0]
    inside = [n for n, (a, b) in enumerate(offsets) if b > start and a < start + len(answer) and b > a]
    return (inside[0], inside[-1]) if inside else None


def _texts(paragraphs: list[Paragraph]) -> Iterator[str]:
    """Yield all contexts and questions, from which a tokenizer is learnt."""
    for paragraph in paragraphs:
        yield paragraph.context
        yield from (one.question for one in paragraph.asked)
