"""Starts the trainer: `--help` and wrong flags cost no import, and a package that is missing or broken one line."""

import os
import signal
import sys
import time

from sparse_mlp_ds.distributed import discovery
from sparse_mlp_ds.errors import REPORT_SECONDS, USAGE, UserError, explained, print_error
from sparse_mlp_ds.log.streams import accept_any_text
from sparse_mlp_ds.train import flags


def start(arguments: list[str] | None = None, program: str = "train.py") -> int:
    """Run the trainer and return the exit code.

    Args:
        arguments: flags to use instead of those that the process was given.
        program: name of the command in its usage text.
    """
    accept_any_text()
    flags.parse(sys.argv[1:] if arguments is None else arguments, program)  # ends here for --help and wrong flags
    try:
        from sparse_mlp_ds.train.main import main
    except Exception as error:
        if (better := explained(error)) is None:
            raise
        _report(better)
        return USAGE
    try:
        return main(arguments, program)
    except KeyboardInterrupt:  # before training begins, when there is nothing to save; then Ctrl-C asks for a stop
        return 128 + signal.SIGINT


def _report(error: Exception) -> None:
    """Print the error on the first rank of each host: all ranks of a host import the same packages."""
    try:
        first = discovery.discover(os.environ).local_rank == 0
    except UserError:
        first = True
    if first:
        print_error(f"error: {error}")
    else:
        time.sleep(REPORT_SECONDS)
