"""How `sparse-mlp-ds` and the trainer read a path that is given on the command line."""

import argparse
from pathlib import Path

from sparse_mlp_ds import files

DEFAULT_RECIPE = "digits"
"""The recipe of a run whose command names none."""


def as_location(text: str) -> str:
    """Return a path, a name or a URL with `~` and `$NAME` filled in, which the shell leaves alone in `--out=~/x`.

    Raises argparse.ArgumentTypeError for an empty text: it comes from a variable that is not set, and would mean the
    working folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path (is a variable not set?)")
    return text if text.startswith("pipe:") else files.expand(text)


def as_path(text: str) -> Path:
    """Return a path with `~` and `$NAME` filled in. Raises argparse.ArgumentTypeError for an empty text."""
    return Path(as_location(text))
