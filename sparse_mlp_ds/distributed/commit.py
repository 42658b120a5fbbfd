"""Which git commit the running code is of."""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sparse_mlp_ds

GIT_SECONDS = 10.0
"""Longest time that one call of git may take, for example on a file server that does not answer."""


@dataclass(frozen=True)
class Commit:
    """The commit that this package's files were checked out from."""

    commit: str
    """The full hash."""
    dirty: bool
    """Whether files of the package differ from that commit, or are new."""


@cache
def of_code() -> Commit | None:
    """Return the commit of this package's code.

    None if the package is installed and no checkout, if git itself is not installed, or if git refuses to answer.
    """
    package = Path(sparse_mlp_ds.__file__).parent
    try:
        # A package that is installed inside the checkout of a different project belongs to no commit of that project.
        _git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD").strip()
        return Commit(commit, dirty=bool(_git(package, "status", "--porcelain", "--", ".").strip()))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints. Raises SubprocessError if it fails, OSError if there is none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment | {"GIT_OPTIONAL_LOCKS": "0"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, check=True,
    ).stdout  # fmt: skip
