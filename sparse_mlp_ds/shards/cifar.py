"""CIFAR's official python archives: pickles of pixels and labels, read without running what they name."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import plain_tar, safe_pickle
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.split import RawImage, Split


def read(
    archive: Path, work: Path, batches: dict[str, list[str]], label_key: bytes, meta: tuple[str, bytes]
) -> list[Split]:
    """Copy the pixels of CIFAR's official archive into one file per split, and list them. Raises UserError.

    Args:
        archive: The .tar.gz of pickles.
        work: Folder for the files of pixels.
        batches: Names of each split's pickles.
        label_key: Key of the labels in these pickles.
        meta: Name of the pickle that holds the class names, and their key in it.
    """
    plain, passed_over = plain_tar.unzipped(archive, work / f"{archive.name}.tar"), PassedOver()
    try:
        with tarfile.open(plain, "r:") as tar:
            wanted = {name for names in batches.values() for name in names} | {meta[0]}
            members = _named(plain_tar.files(tar, passed_over, str(archive)), wanted, archive, passed_over)
            if missing := wanted - members.keys():
                raise UserError(f"{archive}: has no '{min(missing)}'; give the official python archive")
            classes = [name.decode() for name in _unpickled(tar, members[meta[0]])[meta[1]]]
            splits = []
            for split, names in batches.items():
                path = work / f"{archive.name}-{split}.raw"
                labels: list[int] = []
                with path.open("wb") as file:
                    for name in names:
                        batch = _unpickled(tar, members[name])
                        pixels = batch[b"data"].rows().reshape(-1, 3, 32, 32)
                        file.write(pixels.transpose(0, 2, 3, 1).tobytes())
                        labels += [int(label) for _, label in zip(pixels, batch[label_key], strict=True)]
                if labels and not 0 <= min(labels) <= max(labels) < len(classes):
                    raise ValueError(f"labels {min(labels)} to {max(labels)} of {len(classes)} classes")
                images = [
                    RawImage(f"{split}{number:05d}", label, str(path), number * 3072, 3072, (32, 32, 3))
                    for number, label in enumerate(labels)
                ]
                splits.append(Split(split, classes, images))
            splits[0].passed_over.update([passed_over])
            return splits
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise exceptions of any type
        raise UserError(f"{archive}: not the official python archive ({error}); fetch it again") from None


def _named(
    members: Iterator[tarfile.TarInfo], wanted: set[str], archive: Path, passed_over: PassedOver
) -> dict[str, tarfile.TarInfo]:
    """Return those of an archive's members that have one of the wanted names, whatever their folder, by name."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in members:
        name = Path(member.name).name
        if name not in wanted:
            passed_over.add("neither images nor their names", f"{archive}: {member.name}")
        elif name in found:
            raise UserError(f"{archive}: has '{name}' twice; give the official python archive")
        else:
            found[name] = member
    return found


def _unpickled(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[bytes, Any]:
    return safe_pickle.load(plain_tar.open_member(tar, member))
