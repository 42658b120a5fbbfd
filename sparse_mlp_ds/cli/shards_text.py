"""`sparse-mlp-ds shards make` for text: its flags, and what it does with the sources text, speeches and squad."""

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.cli.progress_bar import steps_bar
from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.shards.passed_over import PassedOver
    from sparse_mlp_ds.shards.text import Made, Options, Progress, TextSplit
    from sparse_mlp_ds.shards.texts import Columns, RawText

SOURCES = ("text", "speeches", "squad")
"""Kinds of sources that become rows of tokens."""
PER_SHARD = 100_000
"""Largest number of rows in a tar, unless --per-shard says so."""

_LEAST = {"length": 8, "vocabulary": 300, "held_out": 2, "stride": 1, "per_shard": 1, "workers": 1}
_OF_TABLES = ("text", "pair", "label", "held_out")


def add_flags(make: argparse.ArgumentParser) -> None:
    """Add the flags for text to `shards make`."""
    text = make.add_argument_group("text", "flags of the sources text, speeches and squad")
    add: Any = text.add_argument
    add("--length", type=int, metavar="N", help="tokens in a row (default: 128; squad: 384)")
    add("--vocabulary", type=int, metavar="N", help="tokens of the tokenizer that is learnt from the training texts "
        "(default: 32000; speeches: 4096)")  # fmt: skip
    add("--tokenizer", type=as_path, metavar="FILE", help="SentencePiece file to use instead, such as the "
        "tokenizer.model of the data set that a model was pretrained on")  # fmt: skip
    add("--pack", choices=["documents", "stream", "texts"], help="how texts become rows: a row is a piece of one "
        "document, and what fills no row is left out (documents, the default); documents are joined and cut (stream); "
        "a text or pair of texts is a row, cut or padded (texts, the default with --pair or --label)")  # fmt: skip
    add("--text", metavar="COLUMN", help="column of the texts in .jsonl, .tsv and .csv files (default: text)")
    add("--pair", metavar="COLUMN", help="column of the second texts of pairs")
    add("--label", metavar="COLUMN", help="column of the names of classes; empty, - and -1 stand for none")
    add("--held-out", type=int, metavar="N", help="put every N-th text into val/, the rest into train/, where the "
        "source is not divided (20 is 5 %% of the texts)")  # fmt: skip
    add("--stride", type=int, metavar="N", help="squad: by how many tokens each window on a context begins after the "
        "one before it (default: 128)")  # fmt: skip


def check_unused(args: argparse.Namespace) -> None:
    """Raise UserError if a flag for text is given with a source of images."""
    for key in (*_LEAST, *_OF_TABLES, "tokenizer", "pack"):
        if key not in ("per_shard", "workers") and getattr(args, key) is not None:
            raise UserError(f"shards make {args.source}: --{key.replace('_', '-')} is for text; leave it out")


def make(args: argparse.Namespace) -> None:
    """Run `shards make` for one of SOURCES."""
    from sparse_mlp_ds.shards.passed_over import PassedOver
    from sparse_mlp_ds.shards.summary import summary

    *inputs, out = args.paths
    _check(args, inputs)
    passed_over = PassedOver()
    with steps_bar() as report:
        makers = {"text": _text, "speeches": _speeches, "squad": _squad}
        made = makers[args.source](args, inputs, out, passed_over, report)
    print("".join(f"{line}\n" for line in passed_over.lines()), end="")
    for one in made:
        if one.remark:
            print(f"{one.index.source}: made of {one.remark}")
        print("\n".join(summary(one.index)))


def _check(args: argparse.Namespace, inputs: list[Path]) -> None:
    """Raise UserError if the flags make no sense."""
    for key, least in _LEAST.items():
        if (value := getattr(args, key)) is not None and value < least:
            raise UserError(f"shards make: --{key.replace('_', '-')} {value}; it is at least {least}")
    if not 0 <= args.seed < 2**63:
        raise UserError("shards make: --seed is at least 0 and below 2^63")
    if args.resize is not None:
        raise UserError("shards make: --resize is for images; leave it out")
    if args.tokenizer and args.vocabulary:
        raise UserError("shards make: --tokenizer brings its own vocabulary; leave out --vocabulary or --tokenizer")
    unused = {"text": ("stride",), "speeches": (*_OF_TABLES, "stride"), "squad": (*_OF_TABLES, "pack")}
    for key in unused[args.source]:
        if getattr(args, key) is not None:
            flag = f"--{key.replace('_', '-')}"
            raise UserError(f"shards make {args.source}: {flag} is not for this source; leave it out")
    if args.source == "speeches" and inputs:
        raise UserError("shards make speeches: give the folder OUT alone")


def _options(args: argparse.Namespace, packing: Any, length: int, vocabulary: int, ordered: bool = False) -> "Options":
    """Return how texts become rows.

    Args:
        args: The flags.
        packing: How texts are put into rows.
        length: Tokens in a row, if no flag says so.
        vocabulary: Number of tokens, if no flag says so.
        ordered: Whether rows keep their order.
    """
    from sparse_mlp_ds.shards import row_writer, text

    layout = row_writer.Layout(args.per_shard or PER_SHARD, None if ordered else args.seed)
    return text.Options(
        packing, args.length or length, args.vocabulary or vocabulary, args.tokenizer, layout, args.workers
    )


def _speeches(
    args: argparse.Namespace, inputs: list[Path], out: Path, passed_over: "PassedOver", report: "Progress"
) -> "list[Made]":
    from sparse_mlp_ds.shards import speeches

    options = _options(args, args.pack or "documents", speeches.LENGTH, speeches.VOCABULARY)
    return speeches.make_with(out, options, report)


def _squad(
    args: argparse.Namespace, inputs: list[Path], out: Path, passed_over: "PassedOver", report: "Progress"
) -> "list[Made]":
    from sparse_mlp_ds.shards import squad

    if len(inputs) not in (1, 2):
        raise UserError(
            "shards make squad: give the file of the training questions, that of the held-out ones, and OUT"
        )
    sources = {"": inputs[0]} if len(inputs) == 1 else dict(zip(("train", "val"), inputs, strict=True))
    options = squad.Options(_options(args, "spans", 384, 32_000, ordered=True), args.stride or 128)
    return squad.make(out, sources, options, report)


def _text(
    args: argparse.Namespace, inputs: list[Path], out: Path, passed_over: "PassedOver", report: "Progress"
) -> "list[Made]":
    from sparse_mlp_ds.shards import text, texts

    if len(inputs) != 1:
        raise UserError("shards make text: give one SOURCE, a file or folder of texts, and the folder OUT")
    if inputs[0].is_dir() and files.real(out).is_relative_to(files.real(inputs[0])):
        raise UserError(f"shards make: {out} lies inside {inputs[0]}, where it would become a text; name another OUT")
    columns = texts.Columns(args.text or "text", args.pair, args.label)
    packing = args.pack or ("texts" if args.pair or args.label else "documents")
    if packing == "stream" and args.label:
        raise UserError("shards make text: a row of --pack stream has pieces of several texts; leave out --label")
    if packing != "texts" and args.pair:
        raise UserError(f"shards make text: with --pair, a pair is a row; leave out --pack {packing}")
    paths = texts.splits(inputs[0], passed_over)
    if args.held_out and "" not in paths:
        raise UserError(f"shards make text: {inputs[0]} is divided into train and val; leave out --held-out")
    hashes = [f"{name} {path.relative_to(inputs[0])} {files.sha256(path)}" for name in paths for path in paths[name]]
    plan = [*hashes, str(columns), str(args.held_out)]
    options = _options(args, packing, 128, 32_000)
    splits = _splits(paths, columns, args.held_out, passed_over)
    return text.make(out, splits, options, text.plan_of(plan, options), report)


def _splits(
    paths: dict[str, list[Path]], columns: "Columns", held_out: int | None, passed_over: "PassedOver"
) -> "list[TextSplit]":
    """Return the parts of a data set.

    Args:
        paths: The files of each split.
        columns: What is read of tables.
        held_out: If it is N, every N-th text goes into a part of its own.
        passed_over: Counts empty texts, when the texts are read for the first time.
    """
    from sparse_mlp_ds.shards.text import TextSplit
    from sparse_mlp_ds.shards.texts import read

    uncounted = list(paths)

    def texts_of(name: str) -> "Iterator[RawText]":
        if name not in uncounted:
            return read(paths[name], columns)
        uncounted.remove(name)
        return read(paths[name], columns, passed_over)

    def chosen(every: int, val: bool) -> "Iterator[RawText]":
        pattern = itertools.cycle([(number == every // 2) == val for number in range(every)])
        return itertools.compress(texts_of(""), pattern)

    if held_out:
        return [TextSplit("train", partial(chosen, held_out, False)), TextSplit("val", partial(chosen, held_out, True))]
    return [TextSplit(name, partial(texts_of, name)) for name in paths]
