"""WebDataset tars: writing them, indexing them, and finding what is wrong with them.

A sample is two members side by side, KEY.png (or .jpg, .webp) and KEY.cls, an ASCII class number.
"""

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.decode import decode
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """One image to be written."""

    key: str
    image: bytes
    """The encoded file."""
    suffix: str
    """One of IMAGE_SUFFIXES."""
    label: int


def write(folder: Path, name: str, samples: Iterable[Sample], classes: list[str], per_shard: int) -> Index:
    """Write `samples` in their order as folder/NAME-000000.tar ... of `per_shard` each, and their index."""
    import webdataset  # only writing needs it, and its import takes a while

    folder.mkdir(parents=True, exist_ok=True)
    shards, pending = [], list(samples)
    for number, start in enumerate(range(0, len(pending), per_shard)):
        path = folder / f"{name}-{number:06d}.tar"
        partial = path.with_suffix(".partial")
        with webdataset.TarWriter(str(partial), mtime=0) as tar:
            for sample in pending[start : start + per_shard]:
                tar.write({"__key__": sample.key, sample.suffix: sample.image, "cls": str(sample.label).encode()})
        partial.replace(path)
        shards.append(scan(path))
    index = Index(folder, classes, shards)
    index.save()
    return index


def make_index(folder: Path, classes: list[str] | None = None) -> Index:
    """Index the tars of a folder that somebody else made. Raises UserError naming the first defect."""
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise UserError(f"{folder}: no .tar files here; give the folder that holds them")
    shards = [scan(path) for path in paths]
    labels = [label for shard in shards for label in shard.labels]
    index = Index(folder, classes or [str(n) for n in range(max(labels) + 1)], shards)
    index.save()
    return index


def scan(path: Path) -> Shard:
    """Read a tar's directory. Raises UserError naming the tar, the key and the offset of the first defect."""
    keys, offsets, sizes, labels = [], [], [], []
    for key, members in _samples(path):
        images = [m for m in members if _suffix(m) in IMAGE_SUFFIXES]
        classes = [m for m in members if _suffix(m) == "cls"]
        where = f"{path}: sample '{key}' at offset {members[0].offset}"
        if key in keys[-1:]:
            raise UserError(f"{where}: key repeated; give every sample a key of its own")
        if len(images) != 1 or len(classes) != 1:
            names = ", ".join(m.name for m in members)
            raise UserError(f"{where}: needs one image and one .cls side by side, has {names}; remake this tar")
        if images[0].size == 0:
            raise UserError(f"{where}: the image is empty; remake this tar")
        keys.append(key)
        offsets.append(images[0].offset_data)
        sizes.append(images[0].size)
        labels.append(_label(path, where, classes[0]))
    if not keys:
        raise UserError(f"{path}: holds no samples; remove it")
    if len(set(keys)) != len(keys):
        repeated = next(k for k in keys if keys.count(k) > 1)
        raise UserError(f"{path}: key '{repeated}' names two samples; give every sample a key of its own")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Shard(path.name, path.stat().st_size, digest, keys, offsets, sizes, labels)


def verify(folder: Path) -> list[str]:
    """Return one line per defect of a data set: tars that changed, and images that do not decode."""
    index, defects = index_file.load(folder), []
    for shard in index.shards:
        content = (folder / shard.file).read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            defects.append(f"{folder / shard.file}: differs from the one that was indexed (sha256)")
        for key, offset, size in zip(shard.keys, shard.offsets, shard.sizes, strict=True):
            try:
                decode(content[offset : offset + size], f"{folder / shard.file}: sample '{key}' at offset {offset}")
            except UserError as error:
                defects.append(str(error))
    return defects


def _samples(path: Path) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
    """Yield each run of members that share a key: the name up to its last folder's first dot."""
    key, members = None, []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                member_key = f"{folder}/{base.split('.')[0]}".lstrip("/")
                if member_key != key and members:
                    yield key, members
                    members = []
                key = member_key
                members.append(member)
            # Cut between two members, a tar looks like a shorter one; what it then lacks is its end, 1,024 zero bytes.
            with path.open("rb") as file:
                file.seek(tar.offset)
                whole = file.read(1024) == bytes(1024)
        if not whole:
            raise UserError(f"{path}: is cut off at byte {path.stat().st_size}; copy or remake it")
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a readable plain tar ({error}); remake it") from None
    if members:
        yield key, members


def _suffix(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _label(path: Path, where: str, member: tarfile.TarInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        text = file.read(min(member.size, 32))
    if not (text.strip().isdigit() and len(text.strip()) < 10):
        raise UserError(f"{where}: label {text!r} is not a class number; remake this tar")
    return int(text)
