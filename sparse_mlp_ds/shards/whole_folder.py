"""A folder that appears under its name only when everything in it is there."""

import glob
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_mlp_ds.errors import UserError


@contextmanager
def whole(folder: Path, is_complete: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder to fill, which gets the name `folder` at the end of the `with` block, unless it raises.

    Several processes may do so at the same time: the first to finish wins.

    Args:
        folder: The folder, which does not exist, or is empty.
        is_complete: Tells whether the folder that it is given has what a different process has made there.

    Raises UserError if the folder holds something else, or cannot be written.
    """
    folder = folder.absolute()
    beginning = f".{folder.name}.{platform.node()}."
    for left in folder.parent.glob(f"{glob.escape(beginning)}*"):  # by a process of this host that was killed
        if not Path("/proc", left.name.removeprefix(beginning)).exists():
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{beginning}{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except OSError as error:
        if not is_complete(folder):  # if it is, a different process was first
            raise UserError(f"{folder}: {error.strerror}; remove it or name another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
