"""Reading a tar's directory: its samples and their offsets, and a name for everything in it that is not one.

A sample is two members side by side, KEY.jpg (or .jpeg, .png, .webp) and KEY.cls, an ASCII class number.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.data.defects import BadSampleError
from sparse_mlp_ds.data.index import Defect, Index, Shard, shard
from sparse_mlp_ds.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_NAMES = {"encoding": "utf-8", "errors": "backslashreplace"}  # a key is text in any case
_MOST_DAMAGED = 100
_LABEL_DIGITS = 7  # a larger number is a damaged one, and nobody has names for so many classes


def scan(path: Path) -> Shard:
    """Index one tar. Nothing in it raises: what is no usable sample is listed among the shard's defects."""
    columns: dict[str, list] = {"keys": [], "offsets": [], "sizes": [], "labels": []}
    defects, known, halves = [], set(), {}
    size = path.stat().st_size
    for key, members in _runs(path, defects):
        at = members[0].offset
        images = [m for m in members if _suffix(m) in IMAGE_SUFFIXES]
        classes = [m for m in members if _suffix(m) == "cls"]
        if len(images) != 1 or len(classes) != 1:
            halves.setdefault(key, []).append((at, members))
            continue
        reason = None
        if key in known:
            reason = "duplicate key"
        elif images[0].size == 0:
            reason = "empty image"
        elif max(m.offset_data + m.size for m in members) > size:
            reason = "cut off"
        known.add(key)
        label = None if reason else _label(path, classes[0])
        if reason is None and label is None:
            reason = "label is not a class number"
        if reason:
            defects.append(Defect(key, at, reason))
            continue
        columns["keys"].append(key)
        columns["offsets"].append(images[0].offset_data)
        columns["sizes"].append(images[0].size)
        columns["labels"].append(label)
    defects += [_half(key, runs) for key, runs in halves.items()]
    record = columns | {"file": path.name, "bytes": size, "sha256": file_hash(path)}
    record["defects"] = [vars(d) for d in sorted(defects, key=lambda d: d.offset)]
    return shard(str(path), record)


def make_index(folder: Path, classes: list[str] | None = None) -> Index:
    """Index the tars of a folder that somebody else made. Raises UserError if there is no sample in them."""
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        zipped = f" ({len(list(folder.glob('*.tar.gz')))} are gzipped: unpack them)" if any(folder.glob("*.gz")) else ""
        raise UserError(f"{folder}: no .tar files here{zipped}; give the folder that holds them")
    try:
        shards = [scan(path) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; remove it or make it readable") from None
    labels = [one.labels.max() for one in shards if len(one)]
    if not labels:
        raise UserError(f"{folder}: its {len(paths)} tars hold no sample, a KEY.jpg beside a KEY.cls; remake them")
    if classes and max(labels) >= len(classes):
        raise UserError(f"{folder}: has label {max(labels)}, but {len(classes)} classes are named; name all of them")
    index = Index(str(folder), classes or [str(n) for n in range(int(max(labels)) + 1)], shards)
    index.save(folder)
    return index


def verify(one: Shard) -> list[str]:
    """Return a line per defect of one tar: those of its index, a changed hash, and images that do not decode."""
    lines = [f"{one.path}: {d.key!r} at offset {d.offset}: {d.reason}" for d in one.defects]
    if not Path(one.path).is_file():
        return [*lines, f"{one.path}: is missing; copy or remake it"]
    if file_hash(Path(one.path)) != one.sha256:
        lines.append(f"{one.path}: differs from the one that was indexed (sha256); index or remake it")
    with open(one.path, "rb") as file:
        for place in range(len(one)):
            file.seek(one.offsets[place])
            try:
                Picture(file.read(one.sizes[place])).upright()
            except BadSampleError as error:
                lines.append(f"{one.path}: sample {one.key(place)!r} at offset {one.offsets[place]}: {error}")
    return lines


def class_sorted(index: Index) -> bool:
    """Say whether the samples come sorted by class: neighbours share one far more often than mixed ones would."""
    labels = np.concatenate([one.labels for one in index.shards])
    _, counts = np.unique(labels, return_counts=True)
    if len(counts) < 2:
        return False
    frequency = counts / len(labels)
    return bool((labels[1:] == labels[:-1]).mean() > (1 + (frequency**2).sum()) / 2)


def file_hash(path: Path) -> str:
    """Return a file's sha256, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _runs(path: Path, defects: list[Defect]) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yield each run of members that share a key: the name up to its last folder's first dot."""
    key, members = "", []
    for member in _members(path, defects):
        folder, _, base = member.name.rpartition("/")
        member_key = f"{folder}/{base.split('.')[0]}".lstrip("/")
        if members and (member_key != key or member.name == members[0].name):  # or the same sample once more
            yield key, members
            members = []
        key = member_key
        members.append(member)
    if members:
        yield key, members


def _members(path: Path, defects: list[Defect]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar. Where no header can be read, go on at the next one that can."""
    end, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_MOST_DAMAGED):
            error, sticks_out = "", False
            file.seek(end)
            try:
                with tarfile.open(fileobj=file, mode="r:", **_NAMES) as tar:
                    for member in tar:
                        if member.size < 0 or tar.offset <= end:  # else a hostile header leads in circles
                            raise tarfile.ReadError("negative size")
                        sticks_out = max(member.offset_data + member.size, tar.offset - tarfile.BLOCKSIZE + 1) > size
                        end = member.offset_data if sticks_out else tar.offset
                        if member.isfile() and not member.issparse():  # a sparse one is not in one piece
                            yield member
                        if sticks_out:
                            break
            except Exception as raised:  # a hostile header may raise anything
                error = " ".join(str(raised).split())
            # tarfile stops in silence at a header that it cannot read, as at the end, which is 1,024 zero bytes.
            file.seek(end)
            tail = file.read(1024)
            following = _next_header(file, end if sticks_out else end + tarfile.BLOCKSIZE)
            if following is not None:
                reason = f"damaged header, {following - end} bytes passed over"
            elif sticks_out or len(tail) < 1024:
                end, reason = (size if sticks_out else min(end, size)), "cut off"
            elif tail == bytes(1024):
                return
            elif end == 0:
                reason = f"not a readable plain tar ({error})"
            else:
                reason = f"damaged header, {size - end} bytes passed over"
            defects.append(Defect("", end, reason))
            if following is None:
                return
            end = following
    defects.append(Defect("", end, f"more than {_MOST_DAMAGED} damaged headers, the rest is passed over"))


def _next_header(file: BinaryIO, at: int) -> int | None:
    """Return where the first readable header at `at` or some blocks behind it begins, if there is one."""
    file.seek(at)
    while block := file.read(tarfile.BLOCKSIZE):
        if block[257:262] == b"ustar":
            with suppress(tarfile.HeaderError):
                tarfile.TarInfo.frombuf(block, *_NAMES.values())
                return at
        at += len(block)
    return None


def _half(key: str, runs: list[tuple[int, list[tarfile.TarInfo]]]) -> Defect:
    """Return what is wrong with a key whose runs of members are no samples."""
    at, first = runs[0]
    if len(runs) > 1:
        return Defect(key, at, "members of one sample are not side by side")
    names = " ".join(", ".join(m.name for m in first).split())
    return Defect(key, at, f"needs one image and one .cls side by side, has {names}")


def _suffix(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _label(path: Path, member: tarfile.TarInfo) -> int | None:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        text = file.read(min(member.size, 32)).strip()
    return int(text) if text.isdigit() and len(text) <= _LABEL_DIGITS else None
