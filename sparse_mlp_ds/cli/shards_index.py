"""`sparse-mlp-ds shards index`: the index of existing tars, here or elsewhere."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.cli.progress_bar import progress_bar
from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.data.index import Index
    from sparse_mlp_ds.shards.passed_over import PassedOver


def add_to(actions: Any) -> None:
    """Add `index` to the actions of `shards`. actions: argparse's sub-parsers."""
    index = actions.add_parser(
        "index",
        help="write the index of existing tars",
        description="Writes the index.json of tars that a different program made, and counts by reason, with an "
        "example, everything in them that is not a usable sample. A sample is an image KEY.jpg, KEY.jpeg, KEY.png or "
        "KEY.webp beside a class number KEY.cls; in a tar without any KEY.cls, images have no labels.",
    )
    index.add_argument(
        "folder",
        type=as_location,
        metavar="FOLDER",
        help="folder of the tars, where index.json is written; or, with --out, the URL of a folder (s3://, hf://, ...) "
        "or of tars (https://HOST/train-{000000..000009}.tar), each of which is fetched, read and removed",
    )
    index.add_argument(
        "--classes",
        type=as_path,
        metavar="FILE",
        help="text file with one class name per line, or a different index.json (default: the names in the index.json "
        "that is there, or else numbers)",
    )
    index.add_argument(
        "--files",
        choices=["images", "imagefolder"],
        help="FOLDER holds no tars but images, which a run reads as they are: all of them without labels (images), or "
        "one folder per class (imagefolder)",
    )
    index.add_argument("--out", type=as_path, metavar="FILE", help="index to write for tars behind a URL")
    index.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import class_names
    from sparse_mlp_ds.shards import scan
    from sparse_mlp_ds.shards.passed_over import PassedOver
    from sparse_mlp_ds.shards.summary import summary

    if args.files:
        _of_files(args)
        return
    passed_over = PassedOver()
    names = class_names.read(args.classes) if args.classes else None
    if "://" in args.folder:
        index = _remote(args, names, passed_over)
    elif args.out:
        raise UserError("shards index: --out is for tars behind a URL; a folder has its index.json beside its tars")
    else:
        index = scan.make_index(Path(args.folder), names, passed_over)
    print("\n".join([*passed_over.lines(), *summary(index)]))
    if index.classes:
        print(f"{index.source}: classes {class_names.shortened(index.classes)}")
    if args.out:
        print(f"{args.out}: in a recipe, `data.train: {{path: {json.dumps(args.folder)}, index: {args.out}}}`")


def _remote(args: argparse.Namespace, names: list[str] | None, passed_over: "PassedOver") -> "Index":
    from sparse_mlp_ds.shards.remote_index import make_remote_index

    if args.out is None:
        raise UserError("shards index: tars behind a URL have no folder here; say with --out where the index goes")
    target = files.real(args.out)
    files.check_writable(target.parent, "--out")
    if target.is_dir():
        raise UserError(f"--out {args.out}: is a folder; give a file such as {args.out}/index.json")
    with progress_bar(args.folder) as report:
        index = make_remote_index(args.folder, names, passed_over, report)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.replace(target, index.as_json(), durable=True)
    return index


def _of_files(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.shards.file_index import file_indexes
    from sparse_mlp_ds.shards.summary import summary

    if args.out or args.classes or "://" in args.folder:
        raise UserError("shards index: --files takes a local folder alone, without --out and --classes")
    for split, index in file_indexes(Path(args.folder), args.files):
        try:
            index.save(Path(index.source))
        except OSError as error:
            raise UserError(f"{index.source}: {error.strerror}; index.json is written there") from None
        print("\n".join([*split.passed_over.lines(), *split.remarks, *summary(index)]))
