"""What the scripts have in common: naming a reference's origin, and writing what it gave beside it."""

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1]


def checkout(about: str) -> Path:
    """Return the path of the reference's checkout, the script's one argument, and let its modules be imported."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("checkout", type=Path, help="folder of a git checkout of the reference's repository")
    path = parser.parse_args().checkout.resolve()
    sys.path.insert(0, str(path))
    return path


def record(
    name: str,
    arrays: Mapping[str, np.ndarray],
    about: str,
    repository: str,
    script: str,
    path: Path | None = None,
    packages: Sequence[str] = (),
) -> None:
    """Write `name`.npz, and `name`.json which says where its numbers come from.

    Args:
        name: of both files.
        arrays: inputs and outputs of the reference.
        about: what they are, in one or two sentences.
        repository: address of the code that was run.
        script: name of the module in this package that ran it.
        path: of the checkout that was run; without it, the code is one of the installed `packages`.
        packages: distributions whose versions matter to the result.
    """
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    origin: dict[str, object] = {"about": about, "repository": repository}
    if path is not None:
        origin["commit"] = _git(path, "rev-parse", "HEAD")
        if _git(path, "status", "--porcelain", "--untracked-files=no"):
            raise SystemExit(f"{path} has uncommitted changes: the reference must be as published")
    origin["packages"] = {package: importlib.metadata.version(package) for package in packages}
    origin["command"] = f"python -m tests.references.make.{script}" + (" CHECKOUT" if path else "")
    (FOLDER / f"{name}.json").write_text(json.dumps(origin, indent=2) + "\n")
    print(f"{name}.npz: {(FOLDER / f'{name}.npz').stat().st_size / 1e3:.0f} kB")


def torchvision_without_operators() -> None:
    """Let torchvision be imported beside a build of torch for which its compiled operators were not made.

    The references need its transforms alone, but its import registers shapes of two operators that must be declared.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for module in [module for module in sys.modules if module.startswith("torchvision")]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[object] = []  # a library's declarations end with it


def _git(path: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", path, *arguments], check=True, capture_output=True, text=True).stdout.strip()
