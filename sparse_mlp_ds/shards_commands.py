"""`sparse-mlp-ds shards`: making, verifying, indexing and showing data sets."""

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError, did_you_mean


def add_to(commands: Any) -> None:
    """Add `shards` to the command line."""
    shards = commands.add_parser("shards", help="make, verify, index or show WebDataset tars")
    actions = shards.add_subparsers(required=True, metavar="ACTION")
    cores = os.cpu_count() or 1

    make = actions.add_parser(
        "make",
        help="write a data set as tars with an index",
        description="SOURCE is digits (the embedded digits), imagenet FOLDER (the official archives), cifar10 ARCHIVE, "
        "cifar100 ARCHIVE, imagefolder FOLDER, or wds TAR... (existing tars, gzipped too). Started again it goes on "
        "where it was; under mpirun the nodes share the work.",
    )
    make.add_argument("source", help="digits, imagenet, cifar10, cifar100, imagefolder or wds")
    make.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="what the source needs, then the folder OUT")
    make.add_argument("--per-shard", type=int, default=10_000, metavar="N", help="most images per tar (10000)")
    make.add_argument("--resize", type=int, metavar="PIXELS", help="shorter side of larger images, which become JPEGs")
    make.add_argument("--quality", type=int, default=95, help="of those JPEGs (95)")
    make.add_argument("--seed", type=int, default=0, help="of the order in which images go into tars (0)")
    make.add_argument("--workers", type=int, default=cores, help=f"processes on each node ({cores})")
    make.set_defaults(run=_without_traceback(_make))

    verify = actions.add_parser("verify", help="name every defect of a data set: hashes, members, images")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--workers", type=int, default=cores, help=f"processes ({cores})")
    verify.set_defaults(run=_without_traceback(_verify))

    index = actions.add_parser("index", help="add an index to tars made by others")
    index.add_argument("folder", type=Path)
    index.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line")
    index.set_defaults(run=_without_traceback(_index))

    show = actions.add_parser("show", help="draw what the network will see, as a contact sheet")
    show.add_argument("recipe", help="shipped recipe's name, or a YAML file")
    show.add_argument("--stage", help="stage whose views are drawn (default: the first)")
    show.add_argument("--images", type=int, default=8, metavar="N")
    show.add_argument("--epoch", type=int, default=0)
    show.add_argument("--out", type=Path, default=Path("views.png"))
    show.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key (dotted)")
    show.set_defaults(run=_without_traceback(_show))


def _make(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import digits, index, making, originals

    *inputs, out = args.paths
    if args.source == "digits":
        if inputs:
            raise UserError("shards make digits: give the folder OUT alone")
        digits.make(out)
        for split in ("train", "val"):
            _say(index.load(out / split))
        return
    if args.source not in originals.KINDS:
        raise UserError(
            f"shards make: unknown source '{args.source}'; {did_you_mean(args.source, [*originals.KINDS, 'digits'])}"
        )
    for key in ("per_shard", "workers", "quality", "resize"):
        if (value := getattr(args, key)) is not None and value < 1:
            raise UserError(f"shards make: --{key.replace('_', '-')} {value}; it is at least 1")
    if args.quality > 100 or not 0 <= args.seed < 2**63:
        raise UserError("shards make: --quality is at most 100, --seed at least 0 and below 2^63")
    options = making.Options(args.per_shard, args.resize, args.quality, args.seed)
    work = out / ".originals"
    with _nodes() as (share, from_first):

        def listed() -> list[originals.Split]:
            work.mkdir(parents=True, exist_ok=True)
            return originals.KINDS[args.source](inputs, work)

        try:
            for split in from_first(listed):
                name = split.name or out.resolve().name
                with _progress(f"{out / split.name}", quiet=share.rank > 0) as report:
                    made = making.make(out / split.name, name, split, options, args.workers, share, report)
                if share.rank == 0:
                    for line in split.defects:
                        print(f"passed over: {line}")
                    _say(made)
            share.barrier()
        finally:
            if share.rank == 0:
                shutil.rmtree(work, ignore_errors=True)


def _verify(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import index, scan

    folders = [f for f in (args.folder, args.folder / "train", args.folder / "val") if (f / index.FILE_NAME).exists()]
    if not folders:
        index.load(args.folder)  # says what is missing
    lines = []
    for folder in folders:
        made = index.load_unchecked(folder)
        with _progress(str(folder)) as report, ProcessPoolExecutor(max(args.workers, 1)) as pool:
            defects = []
            for number, found in enumerate(pool.map(scan.verify, made.shards), start=1):
                defects += found
                report(number, len(made.shards))
        lines += defects
        if not defects:
            print(f"{folder}: {len(made)} images, all sound")
    if lines:
        raise UserError("\n".join(lines))


def _index(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import scan

    classes = args.classes.read_text().splitlines() if args.classes else None
    made = scan.make_index(args.folder, classes)
    _say(made)


def _show(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.config import load_recipe
    from sparse_mlp_ds.contact_sheet import draw
    from sparse_mlp_ds.data import digits
    from sparse_mlp_ds.stages import TrainingStage

    recipe = load_recipe(args.recipe, args.set)
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)}
    name = args.stage or next(iter(stages))
    if name not in stages:
        raise UserError(f"shards show: --stage {name} is no training stage; {did_you_mean(name, stages)}")
    if args.images < 2 or args.images % 2 or args.epoch < 0:
        raise UserError("shards show: --images is even and at least 2, --epoch at least 0")
    if recipe.data.embedded:
        digits.make_for(recipe.data)
    draw(recipe, stages[name], args.images, args.epoch).save(args.out)
    print(f"{args.out}: each row an image, first as it is, then every view of it")


def _say(made: Any) -> None:
    from sparse_mlp_ds.data import scan

    for one in made.shards:
        for defect in one.defects:
            print(f"{one.path}: {defect.key!r} at offset {defect.offset}: {defect.reason}")
    bad = sum(len(one.defects) for one in made.shards)
    print(
        f"{made.source}: {len(made)} images in {len(made.shards)} tars, {len(made.classes)} classes"
        + (f", {bad} defects passed over" if bad else "")
    )
    if scan.class_sorted(made):
        print(
            f"{made.source}: its images come sorted by class; keep data.shuffle_shards 0, or remake it mixed with wds"
        )


@contextmanager
def _nodes() -> Iterator[tuple[Any, Any]]:
    """Give this process's share of the work, and a function that calls one on rank 0 and returns it to all ranks.

    An error on one of several ranks ends them all: the others would wait for it forever.
    """
    from sparse_mlp_ds.data.making import Share

    if int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1) == 1:
        yield Share(), lambda function: function()
        return
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    try:
        yield (
            Share(comm.rank, comm.size, comm.Barrier),
            lambda function: comm.bcast(function() if comm.rank == 0 else None),
        )
    except BaseException as error:
        if isinstance(error, (UserError, OSError)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        comm.Abort(2)


def _without_traceback(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """Return a command that ends with one line if the file system refuses something."""

    def run(args: argparse.Namespace) -> None:
        try:
            command(args)
        except OSError as error:
            raise UserError(f"{error.filename or 'shards'}: {error.strerror or error}") from None

    return run


@contextmanager
def _progress(title: str, quiet: bool = False) -> Iterator[Any]:
    """Give a function (done, total) that moves a bar with the time left; on a terminal alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
