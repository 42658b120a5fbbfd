"""`sparse-mlp-ds checkpoint`: looking into checkpoints, verifying, comparing and clearing them away."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError


def add_to(commands: Any) -> None:
    """Add `checkpoint` to the command line."""
    checkpoint = commands.add_parser("checkpoint", help="inspect, verify, compare or prune checkpoints")
    actions = checkpoint.add_subparsers(required=True, metavar="ACTION")

    inspect = actions.add_parser("inspect", help="list tensors with norms, experts, topology, progress")
    inspect.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, or a run: its newest complete one")
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)

    verify = actions.add_parser("verify", help="compare every file with its hash; exit code 2 if one differs")
    verify.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="checkpoints, or runs: all of theirs")
    verify.set_defaults(run=_verify)

    diff = actions.add_parser(
        "diff",
        help="compare two checkpoints tensor by tensor",
        description="Exit code 0 if all weights are the same bit by bit, 1 if not, 2 if one cannot be read.",
    )
    diff.add_argument("first", type=Path, metavar="A", help="a checkpoint, or a run: its newest complete one")
    diff.add_argument("second", type=Path, metavar="B")
    diff.set_defaults(run=_diff)

    prune = actions.add_parser(
        "prune",
        help="remove all but the newest checkpoints of a run",
        description="The last one of each stage and the newest sound one always stay; damaged ones are left alone.",
    )
    prune.add_argument("folder", type=Path, metavar="RUN")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the newest stay")
    prune.add_argument("--every", type=int, metavar="N", help="those of every N-th step stay, too")
    prune.add_argument("--dry-run", action="store_true", help="name them, remove nothing")
    prune.set_defaults(run=_prune)


def _inspect(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.describe import describe
    from sparse_mlp_ds.checkpoints.manifest import find

    checkpoint, passed_over = find(args.path)
    for remark in passed_over:
        print(f"WARNING: passed over {remark}", file=sys.stderr)
    found = describe(checkpoint)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120)

    def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        made = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
        for number, column in enumerate(columns):
            made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            made.add_row(*(Text(str(value)) for value in row))
        console.print(made)

    progress = found["progress"]
    finished = ", ".join(map(str, progress["finished"])) or "none"
    about = {
        "checkpoint": found["path"],
        "recipe": f"{found['recipe']}, written by version {found['version']}, {found['bytes'] / 2**20:.1f} MiB",
        "progress": f"stage {progress['stage']}, its step {progress['stage_step']}, the run's step {progress['step']}; "
        f"finished: {finished}",
        "topology": found["topology"],
    }
    for name, value in about.items():
        console.print(Text(f"{name}: {value}"))
    rows = [(name, _shape(one["shape"]), _figure(one["norm"])) for name, one in found["tensors"].items()]
    table("parameters", ("name", "shape", "norm"), rows)
    rows = [
        (kind, one["tensors"], f"{one['elements']:,}", _figure(one["norm"])) for kind, one in found["others"].items()
    ]
    table("besides", ("kind", "tensors", "elements", "norm"), rows)
    if found["experts"]:
        rows = [
            (layer, one["expert"], _figure(one["norm"]), "" if one["items"] is None else one["items"])
            for layer, experts in found["experts"].items()
            for one in experts
        ]
        table("experts", ("layer", "expert", "norm", "items"), rows)


def _verify(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.manifest import MANIFEST, checkpoints_of, numbered, open_checkpoint
    from sparse_mlp_ds.checkpoints.reader import Reader

    lines = []
    for path in args.paths:
        run = None if (path / MANIFEST).exists() else checkpoints_of(path)
        found = [path] if run is None else list(reversed(numbered(run)))
        if not found:
            lines.append(f"{path}: a run without checkpoints; give another one")
        for one in found:
            try:
                checkpoint = open_checkpoint(one)
                Reader(checkpoint).check_complete()
            except UserError as error:
                lines.append(str(error))
            else:
                files, tensors = (len(checkpoint.manifest[key]) for key in ("files", "tensors"))
                print(f"{one}: {files} files, {tensors} tensors, all sound")
    if lines:
        raise UserError("\n".join(lines))


def _diff(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.compare import compare
    from sparse_mlp_ds.checkpoints.manifest import find

    first, second = find(args.first)[0], find(args.second)[0]
    found = compare(first, second)
    for path, names in ((first.path, found.only_first), (second.path, found.only_second)):
        for name in names:
            print(f"only in {path}: {name}")
    for name, (one, other) in found.shapes.items():
        print(f"{name}: shape {_shape(one)} and {_shape(other)}")
    for name, value in sorted(found.values.items(), key=lambda item: -item[1]):
        print(f"{name}: differs by {value:.2e} of its largest value")
    differing = len(found.only_first) + len(found.only_second) + len(found.shapes) + len(found.values)
    weights = "the same" if found.same_weights else "not the same"
    print(f"{len(found.equal)} tensors equal bit by bit, {differing} not; weights are {weights}")
    if not found.same_weights:
        sys.exit(1)


def _prune(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.keeping import remove, superfluous
    from sparse_mlp_ds.checkpoints.manifest import checkpoints_of

    if args.keep < 1 or (args.every is not None and args.every < 1):
        raise UserError("checkpoint prune: --keep and --every are at least 1")
    folder = checkpoints_of(args.folder)
    if folder is None:
        raise UserError(f"{args.folder}: no run, it has no folder checkpoints; give a run's folder")
    paths, damaged = superfluous(folder, args.keep, args.every)
    for line in damaged:
        print(f"left alone: {line}")
    for path in paths:
        try:
            if not args.dry_run:
                remove(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be removed ({error.strerror})") from None
        print(f"{'would remove' if args.dry_run else 'removed'} {path}")
    if not paths:
        print(f"{args.folder}: nothing to remove")


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _figure(norm: float | None) -> str:
    return "not finite" if norm is None else f"{norm:.4g}"
