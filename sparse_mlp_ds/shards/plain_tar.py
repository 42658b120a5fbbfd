"""Reading plain tars in which images lie at known offsets, with an error for every kind of damage."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards.passed_over import HIDDEN, PassedOver, is_hidden


def unzipped(path: Path, plain: Path) -> Path:
    """Return the path of a plain tar, which can be read at offsets: `path` itself, or `plain`, an unzipped copy of it.

    All of the file is read, so that damage is found by its checksum; tarfile would not read that far. Raises UserError.
    """
    if path.suffix not in (".gz", ".tgz"):
        return path
    try:
        with gzip.open(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unzipped ({error}); fetch it again") from None
    return plain


def list_files(path: Path, passed_over: PassedOver) -> list[tarfile.TarInfo]:
    """Return the files of a plain tar. passed_over: Counts its other members. Raises UserError."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = list(files(tar, passed_over, str(path)))
            check_end(tar)
            return members
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a readable plain tar ({error}); fetch it again") from None


def files(tar: tarfile.TarFile, passed_over: PassedOver, where: str) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar that are not hidden.

    Args:
        tar: The tar.
        passed_over: Counts its other members, apart from folders.
        where: The tar's name, for examples.
    """
    for member in tar:
        if is_hidden(member.name) and not member.isdir():
            passed_over.add(HIDDEN, f"{where}: {member.name}")
        elif member.isfile() and not member.issparse():  # a sparse file is not in one piece
            yield member
        elif not member.isdir():
            passed_over.add("link or special file", f"{where}: {member.name}")


def open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Open a file of a tar."""
    file = tar.extractfile(member)
    assert file is not None
    return file


def check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError if tarfile stopped at a header that it cannot read, which it takes for the tar's end."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"bad header at {tar.offset}")
