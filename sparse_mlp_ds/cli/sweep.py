"""`sparse-mlp-ds sweep`: run a grid of settings, and write one table of the results."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import STOPPED, RunError, UserError, one_line

if TYPE_CHECKING:
    from sparse_mlp_ds.sweep.gather import Gathered
    from sparse_mlp_ds.sweep.plan import Sweep, SweepRun


def add_to(commands: Any) -> None:
    """Add `sweep` to the command line. commands: argparse's sub-parsers."""
    sweep = commands.add_parser(
        "sweep",
        help="run a grid of settings, and write one table of the results",
        description="Executes the runs of SWEEP that are not finished yet, then writes their results (results.jsonl), "
        "tables (table.md, table.json) and plots (table.svg and others). Stopped or killed at any time, the same "
        "command goes on. In a Slurm array, give each task the number of its run: --only $SLURM_ARRAY_TASK_ID.",
    )
    sweep.add_argument(
        "sweep",
        type=as_location,
        nargs="?",
        metavar="SWEEP",
        help="name of a shipped sweep, or path of a YAML file; with --table FILE it may be left out",
    )
    sweep.add_argument(
        "--out",
        type=as_path,
        metavar="FOLDER",
        help="folder of the runs and the table (default: runs/SWEEP, or runs/SWEEP-RECIPE with --recipe)",
    )
    sweep.add_argument(
        "--recipe", type=as_location, help="recipe to run in place of the sweep's own, for example a smaller one"
    )
    sweep.add_argument(
        "--ds_config",
        type=as_location,
        metavar="JSON",
        help="DeepSpeed JSON, by name or path, to use in place of the sweep's own",
    )
    sweep.add_argument("--ranks", type=int, metavar="N", help="processes of each run, in place of the sweep's number")
    sweep.add_argument(
        "--jobs",
        type=_jobs,
        metavar="N",
        help="number of runs at the same time, in place of the sweep's number; `auto` fills the GPUs or the cores",
    )
    sweep.add_argument(
        "--results",
        type=as_path,
        metavar="FILE",
        help="results.jsonl of the same sweep from a different machine; the runs in it are not executed again",
    )
    sweep.add_argument(
        "--mirror",
        metavar="URL",
        help="copy each run's checkpoints to a folder of its own below URL, and go on from those that are there",
    )
    sweep.add_argument(
        "--settings",
        nargs="+",
        default=(),
        metavar="NAME",
        help="with --table FILE: the settings to show; the others are compared with the first of them (default: all)",
    )
    mode = sweep.add_mutually_exclusive_group()
    mode.add_argument("--only", type=int, metavar="N", help="execute only run number N, as --list numbers them")
    mode.add_argument("--list", action="store_true", help="print the runs with their numbers, and execute none")
    mode.add_argument(
        "--table",
        type=as_location,
        nargs="?",
        const=True,
        metavar="FILE",
        help="write tables and plots of the runs that are finished, and execute none; with FILE, a results.jsonl, of "
        "the results in it, into its folder or --out",
    )
    sweep.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> None:
    if args.sweep is None and isinstance(args.table, str) and not args.table.endswith(".jsonl"):
        args.sweep, args.table = args.table, True  # `sweep --table SWEEP`
    if isinstance(args.table, str):
        _table_of_file(args)
        return
    if args.settings:
        raise UserError("--settings chooses from a results file; name it with --table FILE")
    if args.sweep is None:
        raise UserError("no sweep is given; name one, or a results file with --table FILE")
    _table_or_execute(args)


def _table_of_file(args: argparse.Namespace) -> None:
    """Write tables and plots of a results file alone."""
    from sparse_mlp_ds import files
    from sparse_mlp_ds.sweep import gather, plan, table

    path = Path(args.table)
    folder, name = args.out or path.parent, path.name.removesuffix(".jsonl")
    sweep = _changed(plan.load(args.sweep), args) if args.sweep else None
    page = gather.page_of_file(path, sweep, plan.runs(sweep) if sweep else (), args.settings)
    files.check_writable(folder, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    _print_table(table.markdown(page), folder, table.write(page, folder, name))


def _table_or_execute(args: argparse.Namespace) -> None:
    """List the runs of a sweep, write its tables, or execute it."""
    from sparse_mlp_ds import files
    from sparse_mlp_ds.sweep import plan
    from sparse_mlp_ds.sweep.execute import is_finished
    from sparse_mlp_ds.sweep.gather import Gathered

    sweep = _changed(plan.load(args.sweep), args)
    runs, folder = plan.runs(sweep), args.out or Path("runs") / sweep.name
    if args.only is not None and not 0 <= args.only < len(runs):
        raise UserError(f"--only {args.only}: {sweep.name} has runs 0 to {len(runs) - 1}")
    if not args.list:
        files.check_writable(folder, "--out")
    gathered = Gathered(sweep, runs, folder, args.results)
    if args.list:
        recorded = gathered.recorded()
        for number, run in enumerate(runs):
            done = run.name in recorded or is_finished(folder, run)
            print(f"{number:>3}  {'finished' if done else 'to do   '}  {run.name}")
        print(f"as a Slurm array: --array=0-{len(runs) - 1}")
        return
    if args.table is None:
        _execute(sweep, runs, folder, gathered, args.only)
    else:
        text, written = gathered.write()
        _print_table(text, folder, written)


def _execute(sweep: "Sweep", runs: "list[SweepRun]", folder: Path, gathered: "Gathered", only: int | None) -> None:
    """Execute the runs that are not finished, or one of them, and write what there is then."""
    from rich.console import Console

    from sparse_mlp_ds.config import deepspeed_json
    from sparse_mlp_ds.sweep.execute import Execution, is_finished
    from sparse_mlp_ds.sweep.live import live_table

    deepspeed_json.load(sweep.ds_config)  # raises before anything runs
    console = Console(highlight=False, soft_wrap=True)
    say = partial(console.print, markup=False)
    gathered.update([run for run in runs if is_finished(folder, run)])
    chosen = runs
    if only is not None:  # whatever starts several such processes side by side shares out cores and GPUs
        sweep, chosen = sweep.model_copy(update={"jobs": 1}), [runs[only]]

    def keep(run: "SweepRun") -> None:
        try:
            gathered.update([run])
        except (OSError, UserError) as error:  # the run's folder has its results
            say(f"WARNING: the results of {run.name} are not in the results file yet: {one_line(error)}")

    recorded = gathered.recorded()
    if elsewhere := [run for run in chosen if run.name in recorded and not is_finished(folder, run)]:
        say(f"finished by a results file, without a run folder here: {', '.join(run.name for run in elsewhere)}")
    execution = Execution(sweep, chosen, folder, say, recorded, gathered.seconds(), keep)
    if execution.jobs.reason:
        say(execution.jobs.reason)
    with live_table(sweep, runs, execution, console, gathered.metrics()):
        execution.all()
    text, written = gathered.write()
    _print_table(text, folder, written)
    if failed := execution.failed:
        raise RunError(f"{len(failed)} of the runs failed: {', '.join(run.name for run in failed)}; see above")
    if execution.stopped:
        sys.exit(STOPPED)


def _changed(sweep: "Sweep", args: argparse.Namespace) -> "Sweep":
    """Return the sweep with the flags' values in place of its own. Raises UserError."""
    from sparse_mlp_ds.sweep import plan

    flags = ("recipe", "ds_config", "ranks", "jobs")
    changes: dict[str, Any] = {key: value for key in flags if (value := getattr(args, key)) is not None}
    for key in ("ranks", "jobs"):
        if changes.get(key, 1) != "auto" and changes.get(key, 1) < 1:
            raise UserError(f"--{key} {changes[key]}; it is at least 1")
    if args.mirror:
        changes["set"] = sweep.set | {"checkpoint.mirror": args.mirror}
    if args.recipe:  # a different sweep, with a folder of its own
        changes["name"] = f"{sweep.name}-{plan.plain(Path(args.recipe).stem)}"
    return sweep.model_copy(update=changes)


def _print_table(text: str, folder: Path, written: Sequence[str]) -> None:
    print(text, end="")
    print(f"{folder / written[0]}, {', '.join(written[1:])}")


def _jobs(text: str) -> int | str:
    """Return a number of runs, or `auto`. Raises argparse.ArgumentTypeError."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}; give a number of runs, or auto") from None
