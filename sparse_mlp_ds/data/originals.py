"""Where the images of a data set lie before they are in shards: archives, folders, tars; listed, never unpacked."""

import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds.data import plain_pickle
from sparse_mlp_ds.data.scan import IMAGE_SUFFIXES, scan
from sparse_mlp_ds.errors import UserError

FOLDER_SUFFIXES = (*IMAGE_SUFFIXES, "bmp", "gif", "tif", "tiff")


@dataclass(frozen=True, slots=True)
class Original:
    """One image: `size` bytes from `offset` on in the file `path`.

    Encoded or, with a shape [H, W] or [H, W, 3], raw uint8 pixels.
    """

    key: str
    label: int
    path: str
    offset: int
    size: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Split:
    """One part of a data set."""

    name: str
    """`train`, `val`, or empty where there is only one."""
    classes: list[str]
    originals: list[Original]
    defects: tuple[str, ...] = ()
    """What was passed over, a line each."""


def imagenet(sources: list[Path], work: Path) -> list[Split]:
    """List the official ILSVRC-2012 archives: the train tar of tars, the val tar with the devkit's labels.

    Classes are numbered by their sorted WNIDs, as everywhere.
    """
    folder = _one(sources, "the folder that holds ILSVRC2012_img_train.tar")
    train, val = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    devkit = folder / "ILSVRC2012_devkit_t12.tar.gz"
    if not train.is_file() and not val.is_file():
        raise UserError(f"{folder}: neither {train.name} nor {val.name} is here; give the folder of the archives")
    if not devkit.is_file():
        raise UserError(f"{devkit}: missing; it names the classes and holds the labels of {val.name}")
    wnids, names, truth = _devkit(devkit)
    number = {wnid: n for n, wnid in enumerate(sorted(wnids.values()))}
    classes = [names[wnid] for wnid in sorted(names)]
    splits = []
    if train.is_file():
        found = list(_tar_of_tars(train, number))
        splits.append(Split("train", classes, found))
    if val.is_file():
        images = sorted(_members(val), key=lambda m: m.name)
        if len(images) != len(truth):
            raise UserError(f"{val}: {len(images)} images, the devkit has {len(truth)} labels; fetch both again")
        splits.append(
            Split(
                "val",
                classes,
                [
                    Original(Path(m.name).stem, number[wnids[label]], str(val), m.offset_data, m.size)
                    for m, label in zip(images, truth, strict=True)
                ],
            )
        )
    return splits


def imagefolder(sources: list[Path], work: Path) -> list[Split]:
    """List CLASS/IMAGE files, or train/CLASS/IMAGE and val/CLASS/IMAGE; classes are numbered by their sorted names."""
    folder = _one(sources, "the folder that holds one folder per class")
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds one folder per class")
    parts = [name for name in ("train", "val") if (folder / name).is_dir()]
    is_split = len(parts) == 2 or (parts and parts == _folders(folder))
    roots = {name: folder / name for name in parts} if is_split else {"": folder}
    names = {name: _folders(root) for name, root in roots.items()}
    classes = sorted(set().union(*names.values()))
    splits = []
    for name, root in roots.items():
        originals, known = [], set()
        for class_name in names[name]:
            for path in sorted((root / class_name).rglob("*")):
                if path.suffix.lower().lstrip(".") in FOLDER_SUFFIXES and path.is_file():
                    key = _free(_key(path.relative_to(root).with_suffix("")), known)
                    originals.append(Original(key, classes.index(class_name), str(path), 0, path.stat().st_size))
        if not originals:
            raise UserError(f"{root}: no images in folders here; a class is a folder of {', '.join(FOLDER_SUFFIXES)}")
        splits.append(Split(name, classes, originals))
    return splits


def cifar10(sources: list[Path], work: Path) -> list[Split]:
    """List the official cifar-10-python.tar.gz."""
    names = {"train": [f"data_batch_{n}" for n in range(1, 6)], "val": ["test_batch"]}
    return _cifar(_one(sources, "cifar-10-python.tar.gz"), work, names, b"labels", ("batches.meta", b"label_names"))


def cifar100(sources: list[Path], work: Path) -> list[Split]:
    """List the official cifar-100-python.tar.gz, with its 100 fine classes."""
    names = {"train": ["train"], "val": ["test"]}
    return _cifar(_one(sources, "cifar-100-python.tar.gz"), work, names, b"fine_labels", ("meta", b"fine_label_names"))


def wds(sources: list[Path], work: Path) -> list[Split]:
    """List existing WebDataset tars, plain or gzipped; what in them is no sample is passed over and named."""
    if not sources:
        raise UserError("shards make: give the tars, or a folder that holds them, before the folder OUT")
    suffixes = (".tar", ".tar.gz", ".tgz")
    tars = []
    for source in sources:
        found = [p for p in sorted(source.glob("*")) if p.name.endswith(suffixes)] if source.is_dir() else [source]
        if not found or not all(path.is_file() for path in found):
            raise UserError(f"{source}: no tars here; give tars, or a folder that holds them")
        tars += found
    originals, defects, known = [], [], set()
    for number, path in enumerate(tars):
        shard = scan(_unzipped(path, work / f"{number}.tar"))
        defects += [f"{path}: {d.key!r} at offset {d.offset}: {d.reason}" for d in shard.defects]
        for place in range(len(shard)):
            key = shard.key(place)
            if key in known:  # each tar may count from 0
                key = f"{path.name.split('.')[0]}_{key}"
            key = _free(key, known)
            where = (shard.path, int(shard.offsets[place]), int(shard.sizes[place]))
            originals.append(Original(key, int(shard.labels[place]), *where))
    if not originals:
        raise UserError(f"{sources[0]}: its tars hold no sample, a KEY.jpg beside a KEY.cls")
    classes = [str(n) for n in range(max(o.label for o in originals) + 1)]
    return [Split("", classes, originals, tuple(defects))]


KINDS: dict[str, Callable[[list[Path], Path], list[Split]]] = {
    "imagefolder": imagefolder,
    "imagenet": imagenet,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "wds": wds,
}
"""(sources, a folder for temporary files) -> splits."""


def _one(sources: list[Path], what: str) -> Path:
    if len(sources) != 1:
        raise UserError(f"shards make: give one source, {what}")
    if not sources[0].exists():
        raise UserError(f"{sources[0]}: no such file or folder; give {what}")
    return sources[0]


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _key(path: Path) -> str:
    key = "_".join(path.parts).replace(".", "_").replace(" ", "_")
    return key.encode(errors="backslashreplace").decode()  # a file's name may be no text


def _free(key: str, known: set[str]) -> str:
    """Return `key`, with a number behind it if it is taken, and take it."""
    free, number = key, 1
    while free in known:
        number += 1
        free = f"{key}_{number}"
    known.add(free)
    return free


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(path, "r:") as tar:
            members = [m for m in tar if m.isfile()]
            _check_end(tar)
            return members
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: not a readable plain tar ({error}); fetch it again") from None


def _tar_of_tars(path: Path, number: dict[str, int]) -> Iterator[Original]:
    """Yield the images of WNID.tar members by their absolute offsets."""
    name = ""
    try:
        with tarfile.open(path, "r:") as outer:
            for inner in outer:
                name = f"'{inner.name}' of it "
                if not inner.isfile():
                    continue
                wnid = Path(inner.name).stem
                if wnid not in number:
                    raise UserError(f"{path}: {name}names no class of the devkit; fetch the archives again")
                with tarfile.open(fileobj=outer.extractfile(inner), mode="r:") as tar:
                    for member in tar:
                        if member.isfile():
                            offset = inner.offset_data + member.offset_data
                            yield Original(Path(member.name).stem, number[wnid], str(path), offset, member.size)
                    _check_end(tar)
            name = ""
            _check_end(outer)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: {name}is damaged ({error}); fetch the archive again") from None


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError if the tar ended at a header that cannot be read, which tarfile takes for its end."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"bad header at {tar.offset}")


def _devkit(path: Path) -> tuple[dict[int, str], dict[str, str], list[int]]:
    """Return WNIDs by ILSVRC number, words by WNID, and the number of each validation image."""
    from scipy.io import loadmat

    try:
        plain = io.BytesIO(gzip.decompress(path.read_bytes()))
        with tarfile.open(fileobj=plain, mode="r:") as tar:
            content = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [s for s in synsets if int(s["ILSVRC2012_ID"]) <= 1000 and int(s["num_children"]) == 0]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
        names = {str(s["WNID"]): str(s["words"]).split(",")[0] for s in leaves}
        truth = [int(line) for line in content["ILSVRC2012_validation_ground_truth.txt"].split()]
    except Exception as error:  # these readers raise anything
        raise UserError(f"{path}: not the ILSVRC-2012 devkit ({error}); fetch it again") from None
    if set(truth) - wnids.keys():
        raise UserError(f"{path}: a validation label names no class; fetch it again")
    return wnids, names, truth


def _cifar(
    archive: Path, work: Path, batches: dict[str, list[str]], label_key: bytes, meta: tuple[str, bytes]
) -> list[Split]:
    """Copy the raw pixels into one file per split and list them."""
    plain = _unzipped(archive, work / f"{archive.name}.tar")
    try:
        with tarfile.open(plain, "r:") as tar:
            wanted = {name for names in batches.values() for name in names} | {meta[0]}
            found = {Path(m.name).name: m for m in tar if m.isfile() and Path(m.name).name in wanted}
            if missing := wanted - found.keys():
                raise UserError(f"{archive}: has no '{min(missing)}'; give the official python archive")
            read = lambda name: plain_pickle.load(tar.extractfile(found[name]))  # noqa: E731
            classes = [name.decode() for name in read(meta[0])[meta[1]]]
            splits = []
            for split, names in batches.items():
                path, originals = work / f"{archive.name}-{split}.raw", []
                with path.open("wb") as file:
                    for name in names:
                        batch = read(name)
                        pixels = batch[b"data"].rows().reshape(-1, 3, 32, 32)
                        file.write(pixels.transpose(0, 2, 3, 1).tobytes())
                        for _, label in zip(pixels, batch[label_key], strict=True):
                            number = len(originals)
                            if not 0 <= int(label) < len(classes):
                                raise ValueError(f"label {label}")
                            where = (str(path), number * 3072, 3072, (32, 32, 3))
                            originals.append(Original(f"{split}{number:05d}", int(label), *where))
                splits.append(Split(split, classes, originals))
            return splits
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise anything
        raise UserError(f"{archive}: not the official python archive ({error}); fetch it again") from None


def _unzipped(path: Path, plain: Path) -> Path:
    """Return the path of a plain tar: itself, or an unzipped copy, because only plain ones are read at offsets.

    Read whole, a damaged one fails its checksum, which tarfile would not come to.
    """
    if path.suffix not in (".gz", ".tgz"):
        return path
    try:
        with gzip.open(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unzipped ({error}); fetch it again") from None
    return plain
