"""`sparse-mlp-ds shards`: make, verify, index and show data sets."""

import argparse
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.cli import shards_index, shards_show, shards_text
from sparse_mlp_ds.cli.progress_bar import progress_bar
from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sparse_mlp_ds.data.index import Index
    from sparse_mlp_ds.shards.passed_over import PassedOver
    from sparse_mlp_ds.shards.split import Split

_CORES = os.cpu_count() or 1


def add_to(commands: Any) -> None:
    """Add `shards` to the command line. commands: argparse's sub-parsers."""
    shards = commands.add_parser(
        "shards",
        help="make, verify, index or show data sets of WebDataset tars",
        description="Makes, verifies, indexes or shows data sets: WebDataset tars with an index.json beside them. "
        "`sparse-mlp-ds shards ACTION --help` explains an action.",
    )
    actions = shards.add_subparsers(required=True, metavar="ACTION")
    _add_make(actions)
    _add_verify(actions)
    shards_index.add_to(actions)
    shards_show.add_to(actions)


def _add_make(actions: Any) -> None:
    make = actions.add_parser(
        "make",
        help="write a data set as tars with an index",
        description="Writes a data set as tars with an index.json. SOURCE and PATH are one of: `digits OUT` (the "
        "embedded digits), `imagenet FOLDER OUT` (the folder of the official archives), `cifar10 ARCHIVE OUT`, "
        "`cifar100 ARCHIVE OUT` (the official python archive), `images FOLDER OUT` (all images in a folder and below "
        "it, without labels), `imagefolder FOLDER OUT` (one folder per class, or folders train and val, or test, that "
        "hold one per class), or `wds TAR... OUT` (existing WebDataset tars, also gzipped). Of text: `speeches OUT` "
        "(the embedded speeches), `text SOURCE OUT` (a folder of .txt files, or .jsonl, .tsv and .csv files), `squad "
        "TRAIN.json DEV.json OUT` (questions with contexts). What is passed over is counted by reason and told. Killed "
        "at any time, the same command goes on; text starts anew. Under mpirun, nodes that see the same folders share "
        "the work on images.",
    )
    make.add_argument("source", metavar="SOURCE", help="kind of data set, one of the first words above")
    make.add_argument(
        "paths", nargs="+", type=as_path, metavar="PATH", help="what SOURCE is read from; last, the folder OUT to write"
    )
    make.add_argument(
        "--per-shard",
        type=int,
        metavar="N",
        help="largest number of samples in a tar (default: 10000 images, 100000 rows of tokens)",
    )
    make.add_argument(
        "--resize",
        type=int,
        metavar="PIXELS",
        help="scale larger images down to this shorter side and store them as JPEGs; without this flag, images are "
        "copied as they are. Random crops for training are cut from the scaled images: about twice the network's input "
        "keeps them sharp",
    )
    make.add_argument(
        "--quality", type=int, default=95, metavar="N", help="JPEG quality of images that --resize scales (default: 95)"
    )
    make.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples' order (default: 0)")
    make.add_argument(
        "--workers",
        type=int,
        default=_CORES,
        metavar="N",
        help="processes on each node that write tars (default: %(default)s, one per core)",
    )
    shards_text.add_flags(make)
    make.set_defaults(run=_make)


def _add_verify(actions: Any) -> None:
    verify = actions.add_parser(
        "verify",
        help="check every hash and every image of a data set",
        description="Compares every tar with its hash, decodes every image, and names everything that is not a usable "
        "sample: tar, key, offset and reason; and compares the class names of train/ and val/.",
        epilog="Exit codes: 0 if everything is sound; 2 if something is not.",
    )
    verify.add_argument("folder", type=as_path, metavar="FOLDER", help="a folder of tars, or one with train/ and val/")
    verify.add_argument(
        "--workers",
        type=int,
        default=_CORES,
        metavar="N",
        help="processes that read tars (default: %(default)s, one per core)",
    )
    verify.set_defaults(run=_verify)


def _make_digits(inputs: list[Path], out: Path) -> None:
    from sparse_mlp_ds.data import index
    from sparse_mlp_ds.shards import digits

    if inputs:
        raise UserError("shards make digits: give the folder OUT alone")
    digits.make(out)
    for name in ("train", "val"):
        _print_summary(index.load(out / name))


def _make(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import reads
    from sparse_mlp_ds.shards import raw_datasets, writer
    from sparse_mlp_ds.shards.nodes import nodes
    from sparse_mlp_ds.shards.passed_over import PassedOver

    *inputs, out = args.paths
    if args.source == "digits":
        _make_digits(inputs, out)
        return
    if args.source in shards_text.SOURCES:
        shards_text.make(args)
        return
    _check_make(args, raw_datasets.KINDS)
    options = writer.Options(args.per_shard or writer.Options.per_shard, args.resize, args.quality, args.seed)
    work, is_new = out / ".originals", not out.exists()
    with nodes() as (node, from_first):

        def list_splits() -> list["Split"]:
            work.mkdir(parents=True, exist_ok=True)
            with reads.reading(", ".join(map(str, inputs))):
                return raw_datasets.KINDS[args.source](inputs, work)

        try:
            splits = from_first(list_splits)
            if node.rank == 0:
                _print_lines(PassedOver().update(split.passed_over for split in splits))
            for split in splits:
                name = split.name or files.plain_name(files.real(out).name)
                with progress_bar(f"{out / split.name}", quiet=node.rank > 0) as report:
                    written = writer.write(out / split.name, name, split, options, args.workers, node, report)
                if node.rank == 0:
                    _print_split(split, written)
            node.barrier()
            if node.rank == 0 and args.resize:
                print(
                    f"images are stored with at most {args.resize} pixels on the shorter side: random crops of them "
                    "that are smaller than the network's input will be enlarged"
                )
        finally:
            if node.rank == 0:
                shutil.rmtree(work, ignore_errors=True)
                if is_new:
                    with suppress(OSError):  # it is not empty
                        out.rmdir()


def _check_make(args: argparse.Namespace, kinds: Iterable[str]) -> None:
    """Raise UserError if the flags of `shards make` make no sense."""
    if args.source not in kinds:
        known = [*kinds, "digits", *shards_text.SOURCES]
        raise UserError(f"shards make: unknown source '{args.source}'; {did_you_mean(args.source, known)}")
    shards_text.check_unused(args)
    for key in ("per_shard", "workers", "quality", "resize"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise UserError(f"shards make: --{key.replace('_', '-')} {value}; it is at least 1")
    *inputs, out = args.paths
    if args.source in ("images", "imagefolder"):
        what = "some of its images" if args.source == "images" else "a class"
        if any(files.real(out).is_relative_to(files.real(folder)) for folder in inputs):
            raise UserError(
                f"shards make: {out} lies inside {inputs[0]}, where it would become {what}; name another OUT"
            )
    if args.quality > 100 or not 0 <= args.seed < 2**63:
        raise UserError("shards make: --quality is at most 100, --seed at least 0 and below 2^63")


def _verify(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import index as index_file
    from sparse_mlp_ds.data import sources
    from sparse_mlp_ds.shards import scan, verify

    candidates = (args.folder, args.folder / "train", args.folder / "val")
    folders = [folder for folder in candidates if (folder / index_file.FILE_NAME).exists()]
    if not folders:
        index_file.load(args.folder)  # raises UserError, which says what is missing
    lines = []
    for folder in folders:
        index = index_file.load_unchecked(folder)
        unlisted = sources.unlisted(index, folder)
        with progress_bar(str(folder)) as report:
            problems = [unlisted] * bool(unlisted) + verify.verify_beside(index, folder)
            problems += verify.verify_all(index, args.workers, report)
        lines += problems
        if not problems:
            print(f"{folder}: {len(index)} {'rows' if index.text else 'images'}, all sound")
    if lines:
        raise UserError("\n".join(lines))
    scan.kept_names(folders, 0)  # raises UserError if one label is of different classes in train/ and val/


def _print_lines(passed_over: "PassedOver") -> None:
    print("".join(f"{line}\n" for line in passed_over.lines()), end="")


def _print_split(split: "Split", index: "Index") -> None:
    """Print what a split was made of, and the summary of what was written."""
    if split.origin:
        print(f"{index.source}: made of {split.origin}")
    for line in split.remarks:
        print(line)
    _print_summary(index)


def _print_summary(index: "Index") -> None:
    from sparse_mlp_ds.shards.summary import summary

    print("\n".join(summary(index)))
