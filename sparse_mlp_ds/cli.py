"""`sparse-mlp-ds`: what is done around training. Exit codes: 0 done, 2 bad usage or input."""

import argparse
import json
import sys
from pathlib import Path

from sparse_mlp_ds.errors import UserError, did_you_mean


def main() -> None:
    """Entry point of the console script."""
    args = _parser().parse_args()
    try:
        args.run(args)
    except UserError as error:
        sys.exit(_explain(error))


def _explain(error: UserError) -> int:
    print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sparse-mlp-ds", description="Shards and models of sparse_mlp_ds.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the registered models")
    models.add_argument("--json", action="store_true")
    models.set_defaults(run=_models)

    shards = commands.add_parser("shards", help="make, verify or index WebDataset tars").add_subparsers(
        required=True, metavar="ACTION"
    )
    make = shards.add_parser("make", help="write a data set as tars with an index")
    make.add_argument("source", help="digits: the embedded handwritten digits")
    make.add_argument("out", type=Path, help="folder that gets train/ and val/")
    make.set_defaults(run=_shards_make)
    verify = shards.add_parser("verify", help="name every defect of a data set")
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_shards_verify)
    index = shards.add_parser("index", help="add an index to tars made by others")
    index.add_argument("folder", type=Path)
    index.set_defaults(run=_shards_index)
    return parser


def _models(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from sparse_mlp_ds.models import macs, registry

    rows = []
    for name, spec in registry.PRESETS.items():
        shape = {key: getattr(spec, key) for key in ("depth", "width", "image_size", "patch_size")}
        rows.append({"name": name, "family": spec.family} | asdict(macs.cost(spec)) | shape)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="registered models, without classifier head", box=None, padding=(0, 1, 0, 0))
    for key, value in rows[0].items():
        text = isinstance(value, str)
        table.add_column(key.replace("_", " "), justify="left" if text else "right", no_wrap=text)
    for row in rows:
        short = {key: f"{row[key] / 1e6:.2f}M" for key in ("params", "params_active")}
        short["macs"] = f"{row['macs'] / 1e9:.2f}G"
        table.add_row(*(str(value) for value in (row | short).values()))
    Console().print(table)


def _shards_make(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import digits, index

    if args.source != "digits":
        raise UserError(f"shards make: unknown source '{args.source}'; {did_you_mean(args.source, ['digits'])}")
    digits.make(args.out)
    for split in ("train", "val"):
        made = index.load(args.out / split)
        print(f"{made.folder}: {len(made)} images in {len(made.shards)} tars, {len(made.classes)} classes")


def _shards_verify(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import index, shards

    folders = [f for f in (args.folder, args.folder / "train", args.folder / "val") if (f / index.FILE_NAME).exists()]
    if not folders:
        index.load(args.folder)  # says what is missing
    for folder in folders:
        defects = shards.verify(folder)
        if defects:
            raise UserError("\n".join(defects))
        print(f"{folder}: {len(index.load(folder))} images, all sound")


def _shards_index(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import shards

    made = shards.make_index(args.folder)
    print(f"{made.folder}: indexed {len(made)} images in {len(made.shards)} tars, {len(made.classes)} classes")
