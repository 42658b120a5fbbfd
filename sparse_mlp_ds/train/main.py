"""The trainer's command line: `deepspeed --num_gpus 2 train.py --ds_config ds_configs/moe.json`.

Parse, find out which rank this is, check everything, join the process group, run the recipe's stages. Exit codes: 0
done, 2 bad configuration or input, 85 stopped on request (a complete checkpoint is on disk), anything else a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import time
import warnings
from typing import TYPE_CHECKING

from sparse_mlp_ds.distributed import discovery, process_group
from sparse_mlp_ds.distributed.discovery import Launch
from sparse_mlp_ds.errors import (
    CRASH,
    DONE,
    REPORT_SECONDS,
    STOPPED,
    USAGE,
    ReportedError,
    RunError,
    StoppedError,
    UserError,
    explained,
    explaining,
    print_error,
)
from sparse_mlp_ds.log.console import say, show
from sparse_mlp_ds.train.flags import parse
from sparse_mlp_ds.train.run_records import RunRecords

if TYPE_CHECKING:
    from sparse_mlp_ds.train.job import Job

EXIT_CODES: dict[type[Exception], int] = {
    ReportedError: USAGE,
    UserError: USAGE,
    RunError: CRASH,
    StoppedError: STOPPED,
}
"""Exit codes of the errors that explain themselves in one line; every other error is a crash with a traceback."""
WATCHDOG_SECONDS = 60.0
"""Time that a collective waits longer than the watchdog, which knows more and should report first."""


def main(arguments: list[str] | None = None, program: str = "train.py") -> int:
    """Run and return the exit code.

    Args:
        arguments: flags to use instead of those that the process was given.
        program: name of the command in its usage text.
    """
    args = parse(sys.argv[1:] if arguments is None else arguments, program)
    records = RunRecords()
    try:
        run(args, records)
    except tuple(EXIT_CODES) as error:
        code = _leave(error)
        records.tell(error)
        return code
    finally:
        records.close()
    return DONE


def run(args: argparse.Namespace, records: RunRecords, watched: bool = True) -> None:
    """Do what the flags ask for; raises one of the errors of EXIT_CODES unless all is done.

    Args:
        args: the flags, as `flags.parse` returns them.
        records: what is kept of the run; the caller closes it.
        watched: whether a second process watches this one, and ends it when it is stuck or has crashed.
    """
    with explaining():
        launch = discovery.announce(os.environ)
    records.only_on_rank_zero(launch.rank)
    job, memory = _resolve(args)
    if args.check:
        _print_plan(job, memory)
    else:
        _train(job, launch, records, watched)


def explain(error: Exception) -> None:
    """Print what the user has to mend, one line per problem."""
    for line in str(error).splitlines():
        print_error(f"error: {line}")


def _resolve(args: argparse.Namespace) -> tuple[Job, list[str]]:
    """Read and check all inputs, and return them with what is said of memory.

    Raises an error of EXIT_CODES if they are bad; with several ranks, after the reason was printed and all were told.
    """
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 is about to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from sparse_mlp_ds.distributed import deepspeed_command, rendezvous

    try:
        from sparse_mlp_ds.train import compiled, run_folder
        from sparse_mlp_ds.train.job import resolve

        deepspeed_command.check_environment()
        tempfile.gettempdir()  # raises OSError if no folder for temporary files can be written
        world, gpu = process_group.world_size(), True if args.device_memory else None
        job = resolve(args.recipe, args.ds_config, args.set, args.out, args.resume, world, gpu, args.ds)
        run_folder.check(job)
        if not args.check:
            process_group.check_devices()
        if not args.device_memory:
            process_group.check_precision(job.ds_config.precision)
        job = compiled.decide(job, elsewhere=bool(args.device_memory))
        memory = _memory(job, args)
        # The rest of what a run needs: a package that is missing on one host is told before the others wait for it.
        from sparse_mlp_ds.train import loop, preflight  # noqa: F401
    except Exception as error:
        better = explained(error)
        if better and process_group.local_rank() == 0:
            if shortfall := deepspeed_command.shortfall():  # a batch that does not divide follows from it
                better = UserError(f"{shortfall}\n{better}")
            if process_group.world_size() == 1:
                raise better from error
            explain(better)  # every rank of this host found the same; a launcher may end all as soon as one exits
        if not args.check:
            rendezvous.decline(process_group.rank(), process_group.world_size())
        if better is None:
            raise
        raise ReportedError(str(better)) from error
    return job, memory


def _memory(job: Job, args: argparse.Namespace) -> list[str]:
    """Return what the run takes of each rank's memory. Raises UserError if that is more than there is.

    The first rank of each host estimates it. Before training on CPUs none does: it takes seconds, and hosts can swap.
    """
    if process_group.local_rank() or not (args.check or job.gpu):
        return []
    from sparse_mlp_ds.train import memory
    from sparse_mlp_ds.train.without_compiler import without_compiler

    with without_compiler() if args.check else contextlib.nullcontext():
        stages = memory.estimate(job)
    limit = args.device_memory or process_group.device_memory()
    memory.check(job, stages, limit)
    return memory.lines(stages, limit)


def _print_plan(job: Job, memory: list[str]) -> None:
    from sparse_mlp_ds.train.plan import plan

    if process_group.rank() == 0:
        show("\n".join([plan(job), *memory]))


def _train(job: Job, launch: Launch, records: RunRecords, watched: bool = True) -> None:
    """Join the process group and go through the recipe's stages.

    Args:
        job: the run.
        launch: how this process was launched.
        records: what rank 0 keeps of the run.
        watched: whether a second process watches this one.
    """
    from sparse_mlp_ds.data import reads
    from sparse_mlp_ds.distributed import environment
    from sparse_mlp_ds.train import engine, loop, preflight
    from sparse_mlp_ds.train.job import agreed
    from sparse_mlp_ds.train.without_compiler import without_compiler
    from sparse_mlp_ds.watchdog import client as watchdog

    limit = job.recipe.train.timeout_seconds
    who = f"rank {process_group.rank()} on {socket.gethostname()}"
    with contextlib.ExitStack() as stack:
        with explaining(who):
            stack.enter_context(engine.forgotten())
            stack.enter_context(process_group.join(limit + WATCHDOG_SECONDS))
            if watched and not job.compiles:  # a process that outlives its run may compile something later
                stack.enter_context(without_compiler())
            environment.share()
            job = agreed(job)
            watch = stack.enter_context(watchdog.watch(limit, watched))
            reads.set_limit(limit, report=watch.failed if watch.is_on else None)
            facts = preflight.check(job)
        with explaining(who, os_errors=False):  # a disk that fails in mid-training is no mistake of the user's
            loop.run(job, watch, lambda folder: records.open(folder, launch, facts, watch))


def _leave(error: Exception) -> int:
    """Say what this rank has to say of an error that explains itself, and return the exit code."""
    code = next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    if isinstance(error, ReportedError):
        time.sleep(REPORT_SECONDS)
    elif not isinstance(error, StoppedError):
        explain(error)  # a RunError is empty where another rank prints it
    elif process_group.rank() == 0:
        say(f"{error}; start again with the same command")
    return code
