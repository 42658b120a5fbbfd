"""Text data sets: a tokenizer is learnt or taken, texts become rows of tokens, and rows become tars with an index."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data import class_names
from sparse_mlp_ds.data.index import UNLABELLED, Index
from sparse_mlp_ds.data.text_format import TOKENIZER, Packing, TextFormat
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import packing, row_writer, sentence_pieces
from sparse_mlp_ds.shards.encoding import Encoded, encode
from sparse_mlp_ds.shards.row_writer import Layout
from sparse_mlp_ds.shards.texts import RawText
from sparse_mlp_ds.shards.whole_folder import whole

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is finished, and how much there is."""
_EVERY = 100  # texts between two reports


@dataclass(frozen=True)
class Options:
    """How texts become rows."""

    packing: Packing
    """How texts are put into rows: `documents`, `stream` or `texts`."""
    length: int = 128
    """Number of tokens in a row, n."""
    vocabulary: int = 32_000
    """Number of tokens of a tokenizer that is learnt, V."""
    tokenizer: Path | None = None
    """SentencePiece file; None learns one from the first split."""
    layout: Layout = Layout()
    """How rows are put into tars."""
    workers: int = 1
    """Number of processes that encode texts."""


@dataclass(frozen=True)
class TextSplit:
    """One part of a data set."""

    name: str
    """`train`, `val`, or empty if the data set has one part only."""
    texts: Callable[[], Iterator[RawText]]
    """Gives all texts of the part, as often as it is called."""


@dataclass(frozen=True)
class Unfinished:
    """A part of a data set that is being written."""

    name: str
    """`train`, `val`, or empty if the data set has one part only."""
    folder: Path
    """Its folder for now."""
    rows: row_writer.RowFile
    """Gets its rows."""
    tokenizer: Tokenizer
    """Makes tokens from its texts."""
    tokenizer_file: Path
    """Where the tokenizer is for now."""


@dataclass(frozen=True)
class Made:
    """A part that was written."""

    index: Index
    """The index of its tars."""
    remark: str = ""
    """What it was made of; empty if it was there already."""


def make(
    out: Path,
    splits: Sequence[TextSplit],
    options: Options,
    plan: str,
    report: Progress,
    classes: Sequence[str] | None = None,
) -> list[Made]:
    """Write a folder of rows in tars, or one with train/ and val/; if it is there already, do nothing.

    The folder appears when it is whole; a call that was stopped leaves nothing and has to begin again.

    Args:
        out: The folder.
        splits: The parts of the data set; from the first one the tokenizer is learnt.
        options: How texts become rows.
        plan: Hash of the texts and options, see `Index.plan`.
        report: Is told how far it is.
        classes: Class names; None takes the labels of all splits.

    Raises UserError if the folder holds something else, or if texts or options do not suffice.
    """
    counts, labels = dict[str, int](), set[str]()
    by_name = {split.name: split for split in splits}

    def learn_from() -> Iterator[str]:
        return (part for raw in splits[0].texts() for part in (raw.text, raw.pair) if part)

    def fill(unfinished: Unfinished) -> str:
        split = by_name[unfinished.name]
        encoded = encode(split.texts(), unfinished.tokenizer_file, options.workers)
        what, count = f"{split.name or out.name}: texts", counts[split.name]
        return _pack(_reported(encoded, lambda done: report(what, done, count)), unfinished.rows, names)

    if done := row_writer.finished(out, list(by_name), plan):
        return [Made(index) for index in done]
    for split in splits:
        counts[split.name], there = _counted(split)
        labels |= there
    names = class_names.ordered(labels) if classes is None else list(classes)
    if options.packing == "stream":  # a row has pieces of several texts, whose labels may differ
        names = []
    return build(out, list(by_name), options, plan, report, learn_from, fill, names)


def build(
    out: Path,
    parts: Sequence[str],
    options: Options,
    plan: str,
    report: Progress,
    learn_from: Callable[[], Iterable[str]],
    fill: Callable[["Unfinished"], str],
    classes: Sequence[str] = (),
) -> list[Made]:
    """Write folders of rows in tars, each with its index and tokenizer, all or none of them.

    Args:
        out: The folder.
        parts: Names of the folders in it; an empty name is `out` itself.
        options: How texts become rows.
        plan: Hash of the texts and options, see `Index.plan`.
        report: Is told how far it is.
        learn_from: Gives the texts that a tokenizer is learnt from.
        fill: Puts a part's rows where it is told, and returns what is to be said of them.
        classes: Class names.

    Raises UserError if the folder holds something else, or if texts or options do not suffice.
    """
    remarks = []
    with whole(out, lambda folder: bool(row_writer.finished(folder, parts, plan))) as unfinished:
        copy = unfinished / "tokenizer"
        if options.tokenizer is None:
            report("learning a tokenizer", 0, 1)
            sentence_pieces.train(learn_from(), options.vocabulary, copy)
        else:
            Tokenizer(options.tokenizer).save(copy)
        model = Tokenizer(copy)
        text = TextFormat(options.length, model.vocabulary, model.sha256, model.special, options.packing)
        for name in parts:
            folder, what = unfinished / name, name or out.name
            folder.mkdir(exist_ok=True)
            rows = row_writer.RowFile(unfinished / "rows", text)
            remarks.append(fill(Unfinished(name, folder, rows, model, copy)))
            told = partial(report, f"{what}: tars")
            row_writer.write(folder, files.plain_name(what), rows, options.layout, list(classes), plan, told)
            rows.remove()
            model.save(folder / TOKENIZER)
        copy.unlink()
    made = row_writer.finished(out, parts, plan)
    return [Made(index, remark) for index, remark in zip(made, remarks, strict=True)]


def plan_of(content: Iterable[str], options: Options) -> str:
    """Return the plan of a data set, see `Index.plan`. content: what says which texts are made, such as hashes."""
    given = "" if options.tokenizer is None else Tokenizer(options.tokenizer).sha256
    how = [options.packing, options.length, options.vocabulary, given, *vars(options.layout).values()]
    return files.sha256_of(f"{part}\n".encode() for part in [*map(str, how), *content])


def _counted(split: TextSplit) -> tuple[int, set[str]]:
    """Return the number of texts in a split, and their labels. Raises UserError if there is no text."""
    labels = Counter(raw.label for raw in split.texts())
    if not labels:
        raise UserError(f"{split.name or 'the source'}: has no text, or empty ones alone; give more texts")
    return labels.total(), set(labels) - {""}


def _pack(encoded: Iterable[tuple[RawText, Encoded]], rows: row_writer.RowFile, classes: list[str]) -> str:
    """Put encoded texts into rows, and return what is to be said of it. Raises UserError if they fill no row.

    Args:
        encoded: The texts with their tokens.
        rows: Gets the rows.
        classes: Class names.
    """
    numbers, stream = {name: number for number, name in enumerate(classes)}, packing.Stream(rows.text)
    texts = tokens = left_out = 0
    for raw, (first, second) in encoded:
        label = numbers.get(raw.label, UNLABELLED)
        given = len(first) + (0 if second is None else len(second))
        if rows.text.packing == "documents":
            added = packing.documents(rows.text, first)
            left_out += given - len(added) * (rows.text.length - 2)
        elif rows.text.packing == "stream":
            added = stream.rows(first)
        else:
            added, cut = packing.one_row(rows.text, first, second)
            left_out += cut
        rows.add(added, label)
        texts, tokens = texts + 1, tokens + given
    left_out += stream.left_out
    if not rows.count:
        fix = "lower --length" if rows.text.packing == "stream" else "use --pack stream, which joins them"
        raise UserError(f"none of the {texts} texts fills a row of {rows.text.length} tokens; {fix}")
    return f"{texts} texts with {tokens} tokens, {100 * left_out / tokens:.1f} % of which fit into no row"


def _reported(
    encoded: Iterable[tuple[RawText, Encoded]], report: Callable[[int], None]
) -> Iterator[tuple[RawText, Encoded]]:
    """Yield what is given, and tell from time to time how much that was."""
    for number, one in enumerate(encoded):
        if number % _EVERY == 0:
            report(number)
        yield one
