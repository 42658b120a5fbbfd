"""sparse_mlp_ds: distributed training of Sparse-MLP (arXiv 2109.02008) with DeepSpeed's expert parallelism."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_mlp_ds.api.create_model import create_model
    from sparse_mlp_ds.api.fit import fit
    from sparse_mlp_ds.api.fitted_run import FittedRun
    from sparse_mlp_ds.api.moe import MoE
    from sparse_mlp_ds.api.shards import Shards

__all__ = ["FittedRun", "MoE", "Shards", "create_model", "fit"]

__version__ = "0.2.0.dev0"

if sys.version_info < (3, 10):  # noqa: UP036  # a checkout can be started with any Python
    reason = f"sparse_mlp_ds needs Python 3.10 or newer, {sys.executable} is {sys.version.split()[0]}"
    if sys.argv[0] == "-m":  # a command (`python -m sparse_mlp_ds.train`) and no import
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(2)
    raise ImportError(reason)

_FILES = {"FittedRun": "fitted_run", "MoE": "moe", "Shards": "shards", "create_model": "create_model", "fit": "fit"}
"""File of `sparse_mlp_ds.api` that each public name is in."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `--help` and the watchdog's agent need none and wait for no torch."""
    if name not in _FILES:
        raise AttributeError(f"module 'sparse_mlp_ds' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"sparse_mlp_ds.api.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
