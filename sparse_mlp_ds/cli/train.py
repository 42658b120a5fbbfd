"""`sparse-mlp-ds train`: the trainer, for one process or under `mpirun`, `srun` and the like."""

import argparse
import sys
from typing import Any

PROGRAM = "sparse-mlp-ds train"


def add_to(commands: Any) -> None:
    """Add the command. The trainer reads its own flags, so that no other command pays for importing it."""
    train = commands.add_parser(
        "train",
        help="train a recipe; takes the flags of train.py",
        prefix_chars="\0",  # not even --help is read here
        add_help=False,
    )
    train.add_argument("flags", nargs="*")
    train.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.train.start import start

    sys.exit(start(args.flags, PROGRAM))
