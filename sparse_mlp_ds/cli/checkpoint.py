"""`sparse-mlp-ds checkpoint`: inspect, verify, compare, remove and mirror checkpoints."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError

ONE = "a checkpoint, or a run folder (its newest complete checkpoint)"
"""Help text of an argument that names one checkpoint."""


def add_to(commands: Any) -> None:
    """Add `checkpoint` and its actions to the command line."""
    checkpoint = commands.add_parser(
        "checkpoint",
        help="inspect, verify, compare, remove or mirror checkpoints",
        description="Inspects, verifies, compares, removes or mirrors checkpoints. "
        "`sparse-mlp-ds checkpoint ACTION --help` explains an action.",
    )
    actions = checkpoint.add_subparsers(required=True, metavar="ACTION")

    inspect = actions.add_parser(
        "inspect",
        help="show tensors and experts with their norms, topology and progress",
        description="Shows what a checkpoint holds: tensors and experts with their norms, the topology that wrote it, "
        "and how far the run was.",
    )
    inspect.add_argument("path", type=as_path, metavar="PATH", help=ONE)
    inspect.add_argument("--json", action="store_true", help="print JSON instead of tables")
    inspect.set_defaults(run=_inspect)

    verify = actions.add_parser(
        "verify",
        help="compare every file with its hash; exit code 2 if one differs",
        description="Compares every file of the checkpoints with its hash. Exit code 0 if all are equal, 2 if a file "
        "differs or is missing.",
    )
    verify.add_argument(
        "paths", nargs="+", type=as_path, metavar="PATH", help="checkpoints, or runs (all checkpoints of the run)"
    )
    verify.set_defaults(run=_verify)

    diff = actions.add_parser(
        "diff",
        help="compare two checkpoints tensor by tensor",
        description="Exit code 0 if all weights are equal bit by bit, 1 if not, 2 if a checkpoint cannot be read.",
    )
    diff.add_argument("first", type=as_path, metavar="A", help=ONE)
    diff.add_argument("second", type=as_path, metavar="B", help=ONE)
    diff.set_defaults(run=_diff)

    prune = actions.add_parser(
        "prune",
        help="remove all but the newest checkpoints of a run",
        description="Remove all but the newest checkpoints of a run. The last checkpoint of each stage and the newest "
        "complete one always stay; damaged ones are left alone.",
    )
    prune.add_argument("folder", type=as_path, metavar="RUN", help="a run folder")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the newest checkpoints stay")
    prune.add_argument("--every", type=int, metavar="N", help="also keep each checkpoint whose step is a multiple of N")
    prune.add_argument("--dry-run", action="store_true", help="name the checkpoints, but remove nothing")
    prune.set_defaults(run=_prune)

    mirror = actions.add_parser(
        "mirror",
        help="upload what a run's mirror lacks",
        description="Makes the mirror of a run, its recipe's checkpoint.mirror, hold what the run folder holds: the "
        "checkpoints, the files beside them, and models that were exported into the run folder. While a run goes on, "
        "it does this by itself.",
    )
    mirror.add_argument("folder", type=as_path, metavar="RUN", help="a run folder that no run writes into")
    mirror.add_argument("url", nargs="?", metavar="URL", help="where to upload to instead, such as s3://bucket/path")
    mirror.set_defaults(run=_mirror)


def _inspect(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.describe import describe
    from sparse_mlp_ds.checkpoints.manifest import find

    checkpoint, passed_over = find(args.path)
    for line in passed_over:
        print(f"WARNING: passed over {line}", file=sys.stderr)
    summary = describe(checkpoint)
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        _print(summary)


def _print(summary: dict[str, Any]) -> None:
    """Print what `describe` returns as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 120)

    def show(title: str, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
        table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(value)) for value in row))
        console.print(table)

    progress = summary["progress"]
    finished = ", ".join(map(str, progress["finished"])) or "none"
    about = {
        "checkpoint": summary["path"],
        "recipe": f"{summary['recipe']}, written by version {summary['version']}, {summary['bytes'] / 2**20:.1f} MiB",
        "progress": f"stage {progress['stage']}, its step {progress['stage_step']}, the run's step {progress['step']}; "
        f"finished: {finished}",
        "topology": summary["topology"],
    }
    for name, value in about.items():
        console.print(Text(f"{name}: {value}"))
    tensors = ((name, _shape(tensor["shape"]), _norm(tensor["norm"])) for name, tensor in summary["tensors"].items())
    show("parameters", ("name", "shape", "norm"), tensors)
    others = (
        (kind, sums["tensors"], f"{sums['elements']:,}", _norm(sums["norm"]))
        for kind, sums in summary["others"].items()
    )
    show("other tensors", ("kind", "tensors", "elements", "norm"), others)
    if summary["experts"]:
        experts = (
            (layer, expert["expert"], _norm(expert["norm"]), "" if expert["items"] is None else expert["items"])
            for layer, of_layer in summary["experts"].items()
            for expert in of_layer
        )
        show("experts", ("layer", "expert", "norm", "items"), experts)


def _verify(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.manifest import MANIFEST, checkpoints_of, numbered, open_checkpoint
    from sparse_mlp_ds.checkpoints.reader import Reader

    problems = []
    for path in args.paths:
        run = None if (path / MANIFEST).exists() else checkpoints_of(path)
        folders = [path] if run is None else list(reversed(numbered(run)))
        if not folders:
            problems.append(f"{path}: a run without checkpoints; give a different run")
        for folder in folders:
            try:
                checkpoint = open_checkpoint(folder)
                Reader(checkpoint).check_complete()
            except UserError as error:
                problems.append(str(error))
            else:
                files, tensors = (len(checkpoint.manifest[key]) for key in ("files", "tensors"))
                print(f"{folder}: {files} files, {tensors} tensors, all sound")
    if problems:
        raise UserError("\n".join(problems))


def _diff(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.compare import compare
    from sparse_mlp_ds.checkpoints.manifest import find

    first, second = find(args.first)[0], find(args.second)[0]
    difference = compare(first, second)
    only = {first.path: difference.only_first, second.path: difference.only_second}
    for path, names in only.items():
        for name in names:
            print(f"only in {path}: {name}")
    for name, (shape_a, shape_b) in difference.shapes.items():
        print(f"{name}: shape {_shape(shape_a)} and {_shape(shape_b)}")
    for name, value in sorted(difference.values.items(), key=lambda item: -item[1]):
        print(f"{name}: differs by {value:.2e} of its largest value")
    differing = sum(map(len, only.values())) + len(difference.shapes) + len(difference.values)
    weights = "the same" if difference.same_weights else "not the same"
    print(f"{len(difference.equal)} tensors equal bit by bit, {differing} not; weights are {weights}")
    if not difference.same_weights:
        sys.exit(1)


def _prune(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.manifest import checkpoints_of
    from sparse_mlp_ds.checkpoints.retention import removable, remove

    if args.keep < 1 or (args.every is not None and args.every < 1):
        raise UserError("checkpoint prune: --keep and --every must be at least 1")
    folder = checkpoints_of(args.folder)
    if folder is None:
        raise UserError(f"{args.folder}: no run folder, it has no folder 'checkpoints'; give a run folder")
    paths, damaged = removable(folder, args.keep, args.every)
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


def _norm(norm: float | None) -> str:
    return "not finite" if norm is None else f"{norm:.4g}"


def _mirror(args: argparse.Namespace) -> None:
    from sparse_mlp_ds import files
    from sparse_mlp_ds.checkpoints import mirror as mirrors
    from sparse_mlp_ds.checkpoints.manifest import checkpoints_of, newest_readable, read_manifest
    from sparse_mlp_ds.checkpoints.mirror_sync import MirrorSync
    from sparse_mlp_ds.config import yaml_file

    folder = checkpoints_of(args.folder)
    own = newest_readable(folder) if folder else None
    if folder is None or own is None:
        raise UserError(f"{args.folder}: a folder without a complete checkpoint; give the folder of a run")
    if (url := args.url) is None:
        section = yaml_file.read(args.folder / "config.yaml", "RUN", "resolved recipe").get("checkpoint")
        url = section.get("mirror") if isinstance(section, dict) else None
    if not isinstance(url, str) or "://" not in url:
        raise UserError(f"{args.folder}: its recipe has no checkpoint.mirror; give a URL such as s3://bucket/path")
    held = files.claim(args.folder / ".running", "sparse-mlp-ds checkpoint mirror", 0)
    if isinstance(held, str):
        raise UserError(f"{args.folder}: a run writes there ({held}), and uploads by itself; wait for its end")
    with held:
        there = mirrors.newest(url, folder)
        if there and _names(there.manifest) != _names(read_manifest(own)):
            raise UserError(f"{url}: holds {there.path.name} of a different run; give the URL of this run")
        try:
            newest = MirrorSync(args.folder, mirrors.Mirror(url))()
        except mirrors.MirrorError as error:
            raise UserError(f"{url}: {error}; what was uploaded stays, and the same command goes on") from None
    print(f"{url} holds step_{newest} and all that stays of {args.folder}")


def _names(manifest: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one run from another: the recipe's name, its seed, and its model."""
    recipe = manifest["recipe"]
    train = recipe.get("train")
    return recipe.get("name"), train.get("seed") if isinstance(train, dict) else None, recipe.get("model")
