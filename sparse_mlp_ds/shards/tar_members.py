"""The members of a tar, found again behind damage: a header that cannot be read costs only what it describes."""

import tarfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from sparse_mlp_ds.data.index import BadEntry
from sparse_mlp_ds.errors import one_line
from sparse_mlp_ds.shards.passed_over import HIDDEN, PassedOver, is_hidden

_ENCODING, _ENCODING_ERRORS = "utf-8", "backslashreplace"  # every member's name becomes text, whatever bytes it is
_MAX_DAMAGED = 100


class _Stop(NamedTuple):
    """Where tarfile stopped reading."""

    offset: int
    """First byte that no member claims."""
    is_cut: bool
    """Whether the last member claims to be longer than the file."""
    error: str
    """tarfile's error message; empty if it raised no error."""


def read_members(path: Path, bad_entries: list[BadEntry]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, apart from folders. After a header that cannot be read, go on at the next one.

    bad_entries: Gets an entry for all damage.
    """
    start, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_MAX_DAMAGED):
            stop = yield from _members_from(start, file, size)
            # tarfile stops without an error at a header that it cannot read, and at the end: 1,024 zero bytes.
            file.seek(stop.offset)
            tail = file.read(1024)
            following = _next_header(file, stop.offset if stop.is_cut else stop.offset + tarfile.BLOCKSIZE)
            if following is not None:
                reason = f"damaged header, {following - stop.offset} bytes passed over"
                bad_entries.append(BadEntry("", stop.offset, reason))
                start = following
                continue
            if stop.is_cut or len(tail) < 1024:
                bad_entries.append(BadEntry("", size if stop.is_cut else min(stop.offset, size), "cut off"))
            elif stop.offset == 0 and tail != bytes(1024):
                bad_entries.append(BadEntry("", 0, f"not a readable plain tar ({stop.error})"))
            elif tail != bytes(1024):
                reason = f"damaged header, {size - stop.offset} bytes passed over"
                bad_entries.append(BadEntry("", stop.offset, reason))
            return
    bad_entries.append(BadEntry("", start, f"more than {_MAX_DAMAGED} damaged headers, the rest is passed over"))


def _members_from(start: int, file: IO[bytes], size: int) -> Generator[tarfile.TarInfo, None, _Stop]:
    """Yield a tar's members, apart from folders, from byte `start` on until tarfile stops; return where it did.

    start: Offset of a header. file: The tar. size: The tar's size, bytes.
    """
    end, is_cut, error = start, False, ""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding=_ENCODING, errors=_ENCODING_ERRORS) as tar:
            for member in tar:
                if member.size < 0 or tar.offset <= end:  # a hostile header could lead back to where it was
                    raise tarfile.ReadError("negative size")
                is_cut = max(member.offset_data + member.size, tar.offset - tarfile.BLOCKSIZE + 1) > size
                end = member.offset_data if is_cut else tar.offset
                if not member.isdir():
                    yield member
                if is_cut:
                    break
    except Exception as raised:  # a hostile header may raise exceptions of any type
        error = one_line(raised)
    return _Stop(end, is_cut, error)


def _next_header(file: IO[bytes], offset: int) -> int | None:
    """Return the offset of the first readable header, at `offset` or some blocks after it; None if there is none."""
    file.seek(offset)
    while block := file.read(tarfile.BLOCKSIZE):
        if block[257:262] == b"ustar":
            with suppress(tarfile.HeaderError):
                tarfile.TarInfo.frombuf(block, _ENCODING, _ENCODING_ERRORS)
                return offset
        offset += len(block)
    return None


class Run(NamedTuple):
    """Members of a tar that lie side by side and share a key."""

    key: str
    members: list[tarfile.TarInfo]

    @property
    def offset(self) -> int:
        """Where the first member's header starts in the tar, bytes."""
        return self.members[0].offset


def counted(members: Iterable[tarfile.TarInfo], passed_over: PassedOver, source: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members that may belong to samples; count the others. source: The tar's name."""
    for member in members:
        if is_hidden(member.name):
            passed_over.add(HIDDEN, f"{source}: {member.name}")
        elif member.isfile() or member.issym() or member.islnk():
            yield member
        else:
            passed_over.add("neither file nor link in a tar", f"{source}: {member.name}")


def runs_of(members: Iterable[tarfile.TarInfo]) -> Iterator[Run]:
    """Yield each run of members that share a key: the name up to the first dot after its last folder."""
    key, side_by_side = "", list[tarfile.TarInfo]()
    for member in members:
        folder, _, base = member.name.rpartition("/")
        member_key = f"{folder}/{base.split('.')[0]}".lstrip("/")
        if side_by_side and (
            member_key != key or member.name == side_by_side[0].name
        ):  # or the same sample a second time
            yield Run(key, side_by_side)
            side_by_side = []
        key = member_key
        side_by_side.append(member)
    if side_by_side:
        yield Run(key, side_by_side)


def problem(run: Run, members: list[tarfile.TarInfo], known: set[str], size: int) -> str | None:
    """Return what is wrong with a sample that has all the members that it needs; None if nothing is.

    Args:
        run: The sample's members.
        members: Those that it needs, such as an image and the class number behind it.
        known: Keys of earlier samples.
        size: The tar's size, bytes.
    """
    if run.key in known:
        return "duplicate key"
    for member in members:
        if member.issym() or member.islnk():
            return f"link in place of a file, {member.name}; pack with tar's --dereference and --hard-dereference"
        if member.issparse():  # its content is not in one piece
            return f"sparse file, {member.name}; pack without tar's --sparse"
    if max(m.offset_data + m.size for m in run.members) > size:
        return "cut off"
    return None
