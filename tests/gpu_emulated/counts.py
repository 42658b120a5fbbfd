"""What the program asks of its device, counted by the line of source that asked."""

import functools
import linecache
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = str(Path(__file__).parents[2]) + os.sep
_OWN = str(Path(__file__).parent) + os.sep
_INSTALLED = "site-packages" + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
KINDS = ("launches", "synchronisations", "collectives", "copies")
"""Kernel launches; times that the host waits for the device; calls of NCCL; copies to or from it without waiting."""


class Counts:
    """How often each place asked for each of KINDS since `begin`; nothing is counted before it and after `end`."""

    def __init__(self) -> None:
        self.by_place: dict[str, Counter[str]] | None = None

    def begin(self) -> None:
        """Count from zero."""
        self.by_place = {kind: Counter() for kind in KINDS}

    def end(self) -> dict[str, dict[str, int]]:
        """Stop counting and return what was counted: kind -> place -> number, largest first."""
        counted, self.by_place = self.by_place or {}, None
        return {kind: dict(places.most_common()) for kind, places in counted.items()}

    def add(self, kind: str, times: int = 1) -> None:
        """Count something that happens now."""
        if self.by_place is not None and times:
            self.by_place[kind][place()] += times


def place() -> str:
    """Return the innermost line of the project that runs now, without its number, which changes with every edit.

    Behind it stands the line of a library other than torch that it called, if there is one. In a backward pass, where
    none of the project's functions runs, it is the line that called the operation in the forward pass, which autograd's
    anomaly mode has noted.
    """
    project, library = next(_lines(), ("", ""))
    if (node := torch._C._current_autograd_node()) is not None and (not project or "backward(" in project):
        if library and "/backward" not in library and not library.endswith("backward"):
            return f"backward pass, {node.name()} via {library}"
        noted = next(reversed(_forward_frames(node)), "")
        return f"{noted} (backward)" if noted else f"backward pass, {node.name()}"
    return f"{project} via {library}" if library else project or "outside of the project"


def project_lines() -> Iterator[str]:
    """Yield the lines of the project that led here, innermost first, as `file: function: text`."""
    return (project for project, _ in _lines())


def _lines() -> Iterator[tuple[str, str]]:
    """Yield the lines of the project that led here, innermost first, each with the line of a library that it called."""
    frame, library = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if _is_project(name):
            yield _line(name, frame.f_code.co_name, linecache.getline(name, frame.f_lineno).strip()), library
            library = ""
        elif not library and _INSTALLED in name and not name.startswith(_TORCH):
            library = f"{name.rpartition(_INSTALLED)[2]}: {frame.f_code.co_name}"
        frame = frame.f_back


def _forward_frames(node: object) -> list[str]:
    """Return the project's lines among the frames that anomaly mode noted when the node was made, outermost first."""
    frames = []
    for entry in node.metadata.get("traceback_", ()):  # type: ignore[attr-defined]
        head, _, text = entry.strip().partition("\n")  # File "NAME", line NUMBER, in FUNCTION
        name, function = head.split('"')[1], head.rpartition(" in ")[2]
        if _is_project(name):
            frames.append(_line(name, function, text.strip().split("\n")[0].strip()))
    return frames


@functools.cache
def _is_project(name: str) -> bool:
    return name.startswith(ROOT) and not name.startswith(_OWN) and _INSTALLED not in name


def _line(name: str, function: str, text: str) -> str:
    return f"{name.removeprefix(ROOT)}: {function}: {text[:90]}"


counts = Counts()
"""Those of this process."""
