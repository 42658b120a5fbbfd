"""Paths that a command cannot use, one kind after the other, each made in a folder of its own."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LONG = "x" * 300
"""A name that no file system takes."""


def _copy(source: str, target: Path) -> Path:
    return Path(shutil.copytree(source, target) if Path(source).is_dir() else shutil.copy(source, target))


def _chmod(path: Path, mode: int) -> Path:
    path.chmod(mode)
    return path


def _missing(folder: Path, sound: str) -> str:
    return str(folder / f"none{Path(sound).suffix}")


def _unreadable(folder: Path, sound: str) -> str:
    return str(_chmod(_copy(sound, folder / f"x{Path(sound).suffix}"), 0))


def _in_a_closed_folder(folder: Path, sound: str) -> str:
    (folder / "closed").mkdir()
    path = _copy(sound, folder / f"closed/x{Path(sound).suffix}")
    _chmod(folder / "closed", 0)
    return str(path)


def _below_a_file(folder: Path, sound: str) -> str:
    (folder / "file").write_text("x")
    return str(folder / f"file/x{Path(sound).suffix}")


def _link_to_itself(folder: Path, sound: str) -> str:
    path = folder / f"loop{Path(sound).suffix}"
    path.symlink_to(path.name)
    return str(path)


def _too_long(folder: Path, sound: str) -> str:
    return str(folder / f"{LONG}{Path(sound).suffix}")


def _no_text(folder: Path, sound: str) -> str:
    """A name that is no UTF-8, of a file that does not exist."""
    return str(folder / f"x\udce9{Path(sound).suffix}")


def _a_file(folder: Path, sound: str) -> str:
    path = folder / f"x{Path(sound).suffix}"
    path.write_text("x")
    return str(path)


def _a_folder(folder: Path, sound: str) -> str:
    path = folder / f"x{Path(sound).suffix}"
    path.mkdir()
    return str(path)


def _files_unreadable(folder: Path, sound: str) -> str:
    copy = _copy(sound, folder / "x")
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        path.chmod(0)
    return str(copy)


def _no_utf8(folder: Path, sound: str) -> str:
    path = folder / f"x{Path(sound).suffix}"
    path.write_bytes(b"\xff\xfea\0\n\0\xe9")  # as a Windows editor writes "UTF-16"
    return str(path)


def _empty(folder: Path, sound: str) -> str:
    path = folder / f"x{Path(sound).suffix}"
    path.touch()
    return str(path)


def _closed_parent(folder: Path, sound: str) -> str:
    (folder / "closed").mkdir(mode=0o555)
    return str(folder / f"closed/x{Path(sound).suffix}")


def _closed(folder: Path, sound: str) -> str:
    (folder / "closed").mkdir()
    _chmod(folder / "closed", 0)
    return str(folder / "closed" / Path(sound).name if Path(sound).suffix else folder / "closed")


Fault = Callable[[Path, str], str]
"""From an empty folder and a path that is sound, to one of the same suffix that is not."""
_ANY: tuple[Fault, ...] = (_below_a_file, _link_to_itself, _too_long)
_READ: tuple[Fault, ...] = (*_ANY, _missing, _unreadable, _in_a_closed_folder, _no_text)
FAULTS: dict[str, tuple[Fault, ...]] = {
    "file": (*_READ, _a_folder, _no_utf8, _empty),
    "folder": (*_READ, _a_file, _files_unreadable),
    "new file": (*_ANY, _closed_parent, _closed, _a_folder),
    "new folder": (*_ANY, _closed_parent, _closed, _a_file),
}
"""Kind of a path -> what may be wrong with it."""


def removed(folder: Path) -> None:
    """Remove a folder in which such paths were made."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            if not (path := Path(parent, name)).is_symlink():
                path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def small_disk(folder: Path, options: str):
    """Mount a disk of one page at `folder`, as the superuser can, or skip the test."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=4k,{options}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
