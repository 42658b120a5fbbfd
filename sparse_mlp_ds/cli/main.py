"""The command `sparse-mlp-ds`: everything around training.

Exit codes: 0 if all is done; 1 if a run of a sweep failed, or if `checkpoint diff` found different weights; 2 for bad
usage or bad input, or if `doctor` found something wrong; 85 if a sweep was stopped on request.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from sparse_mlp_ds import __version__
from sparse_mlp_ds.cli import (
    checkpoint,
    doctor,
    embed,
    export,
    models,
    predict,
    recipe,
    report,
    routes,
    shards,
    sweep,
    train,
)
from sparse_mlp_ds.errors import CRASH, USAGE, UserError, explained, print_error
from sparse_mlp_ds.log.streams import accept_any_text

COMMANDS = (models, recipe, train, shards, sweep, checkpoint, export, predict, embed, routes, report, doctor)
"""Modules whose function `add_to` adds a sub-command."""


STARTS_RUNS = (train.__name__, sweep.__name__)
"""Commands that end their processes by themselves, after these have saved."""
NOBODY_READS = 128 + getattr(signal, "SIGPIPE", 13)  # which Windows does not have
"""Exit code of a command whose output nobody reads any more, as a shell reports it of any program."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; ends the process with SystemExit unless the exit code is 0.

    arguments: Command line, without the program's name; None for the one that the process was started with.
    """
    accept_any_text()
    with _while_somebody_reads():
        args = _parser().parse_args(arguments)
        _run(args)


def _run(args: argparse.Namespace) -> None:
    """Run a command that was parsed; ends the process with SystemExit unless the exit code is 0."""
    own = args.run.__module__ not in STARTS_RUNS and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if own:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        args.run(args)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if (better := explained(error)) is None:
            raise
        print_error("\n".join(f"error: {line}" for line in str(better).splitlines()))
        sys.exit(USAGE if isinstance(better, UserError) else CRASH)
    finally:
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _while_somebody_reads() -> Iterator[None]:
    """End in silence, with exit code 141, once nobody reads standard output any more, as `head` does not.

    A command that has ended with an exit code of its own before that is noticed keeps it.
    """
    told, logging.raiseExceptions = logging.raiseExceptions, False  # or else DeepSpeed's logger complains
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _write_to_nobody()
        sys.exit(NOBODY_READS)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends the process itself, with exit code 1
            _write_to_nobody()
            sys.exit(NOBODY_READS)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _write_to_nobody()
        raise
    finally:
        logging.raiseExceptions = told


def _write_to_nobody() -> None:
    """Let standard output lead nowhere, so that Python does not try to write the rest at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End the command on Ctrl-C: its processes first, because one that is stuck would be waited for without end."""
    import psutil

    from sparse_mlp_ds.distributed import processes

    signal.signal(signal.SIGCHLD, lambda *_: None)  # torch's handler would raise for each loader process that ends here
    for process in psutil.Process().children(recursive=True):
        processes.send(process)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparse-mlp-ds",
        description="Train, prepare data sets, check hosts, run sweeps, look into checkpoints, and use trained models. "
        "`sparse-mlp-ds COMMAND --help` explains a command.",
        epilog="Exit codes: 0 if all is done; 1 if a run of a sweep failed, or if `checkpoint diff` found different "
        "weights; 2 for bad usage or bad input, or if `doctor` found something wrong; 85 if a sweep was stopped on "
        "request, which the same command continues.",
    )
    parser.add_argument("--version", action="version", version=f"sparse-mlp-ds {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    main()
