"""`sparse-mlp-ds sweep`: a grid of runs, and one table of what they reached."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import STOPPED, RunError, UserError


def add_to(commands: Any) -> None:
    """Add the command."""
    sweep = commands.add_parser(
        "sweep",
        help="run a grid of settings and make one table",
        description="Runs what SWEEP lists and is not finished yet, then writes table.md, table.json and table.svg. "
        "Killed at any time, the same command goes on. In a Slurm array, give each task its number: "
        "--only $SLURM_ARRAY_TASK_ID.",
    )
    sweep.add_argument("sweep", metavar="SWEEP", help="a shipped sweep's name, or a YAML file")
    sweep.add_argument("--out", type=Path, help="folder of the runs and the table (default: runs/<sweep>[-<recipe>])")
    sweep.add_argument("--recipe", help="recipe in place of the sweep's, such as a smaller one")
    sweep.add_argument("--ds_config", help="DeepSpeed JSON in place of the sweep's")
    sweep.add_argument("--ranks", type=int, help="processes, or GPUs, of each run, in place of the sweep's")
    sweep.add_argument("--jobs", type=int, help="runs at once, in place of the sweep's")
    what = sweep.add_mutually_exclusive_group()
    what.add_argument("--only", type=int, metavar="N", help="the one run of this number")
    what.add_argument("--list", action="store_true", help="print the runs with their numbers")
    what.add_argument("--table", action="store_true", help="make the table of what is finished, run nothing")
    sweep.set_defaults(run=_sweep)


def _sweep(args: argparse.Namespace) -> None:
    from sparse_mlp_ds import ds_config
    from sparse_mlp_ds.sweep import plan, table
    from sparse_mlp_ds.sweep.execute import Execution, is_finished

    sweep = plan.load(args.sweep)
    flags = ("recipe", "ds_config", "ranks", "jobs")
    changes = {key: value for key in flags if (value := getattr(args, key)) is not None}
    for key in ("ranks", "jobs"):
        if changes.get(key, 1) < 1:
            raise UserError(f"--{key} {changes[key]}; it is at least 1")
    if args.recipe:  # another sweep, with a folder of its own
        changes["name"] = f"{sweep.name}-{Path(args.recipe).stem}"
    sweep = sweep.model_copy(update=changes)
    runs, folder = plan.runs(sweep), args.out or Path("runs") / sweep.name
    if args.only is not None and not 0 <= args.only < len(runs):
        raise UserError(f"--only {args.only}: {sweep.name} has runs 0 to {len(runs) - 1}")
    if args.list:
        for number, run in enumerate(runs):
            print(f"{number:>3}  {'finished' if is_finished(folder, run) else 'to do   '}  {run.name}")
        print(f"as a Slurm array: --array=0-{len(runs) - 1}")
        return

    failed, stopped = [], []
    if not args.table:
        ds_config.load(sweep.ds_config)  # what is wrong with it is said before anything runs
        if args.only is None:
            execution = Execution(sweep, runs, folder, _say)
        else:  # who starts several such processes side by side shares out cores and GPUs
            execution = Execution(sweep.model_copy(update={"jobs": 1}), [runs[args.only]], folder, _say)
        execution.all()
        failed, stopped = execution.failed, execution.stopped
    print(table.write(sweep, runs, folder), end="")
    print(f"{folder / 'table.md'}, table.json, table.svg")
    if failed:
        raise RunError(f"{len(failed)} of the runs failed: {', '.join(run.name for run in failed)}; see above")
    if stopped:
        sys.exit(STOPPED)


def _say(text: str) -> None:
    print(text, flush=True)
