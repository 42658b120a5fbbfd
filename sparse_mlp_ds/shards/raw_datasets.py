"""The images of raw data sets: archives, image folders and tars are listed, and never unpacked."""

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sparse_mlp_ds.data import class_names
from sparse_mlp_ds.data.index import UNLABELLED, Index
from sparse_mlp_ds.data.sources import check_images
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import cifar, image_folder, plain_tar
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.scan import count_bad_entries, kept_names, list_tars, scan
from sparse_mlp_ds.shards.split import RawImage, Split


def imagenet(sources: list[Path], work: Path) -> list[Split]:
    """List the official ILSVRC-2012 archives: the training tar of tars, the validation tar with the devkit's labels.

    Classes are numbered by their sorted WNIDs, as usual.
    """
    folder = _only(sources, "the folder that holds ILSVRC2012_img_train.tar")
    train, val = folder / "ILSVRC2012_img_train.tar", folder / "ILSVRC2012_img_val.tar"
    devkit = folder / "ILSVRC2012_devkit_t12.tar.gz"
    if not train.is_file() and not val.is_file():
        raise UserError(f"{folder}: neither {train.name} nor {val.name} is here; give the folder of the archives")
    passed_over = PassedOver()
    for path in sorted(folder.iterdir()):
        if path not in (train, val, devkit):
            passed_over.add("none of the three archives that are read", path)
    for path, split in ((train, "train"), (val, "val")):
        if not path.is_file():
            passed_over.add(f"not here, so no {split} is written", path)
    if not devkit.is_file():
        raise UserError(f"{devkit}: missing; it names the classes and holds the labels of {val.name}")
    wnids, names, truth = _devkit(devkit)
    number = {wnid: n for n, wnid in enumerate(sorted(wnids.values()))}
    classes = [names[wnid] for wnid in sorted(names)]
    splits = []
    if train.is_file():
        splits.append(Split("train", classes, list(_tar_of_tars(train, number, passed_over))))
    if val.is_file():
        members = sorted(plain_tar.list_files(val, passed_over), key=lambda m: m.name)
        if len(members) != len(truth):
            raise UserError(f"{val}: {len(members)} images, the devkit has {len(truth)} labels; fetch both again")
        images = [
            RawImage(Path(m.name).stem, number[wnids[label]], str(val), m.offset_data, m.size)
            for m, label in zip(members, truth, strict=True)
        ]
        splits.append(Split("val", classes, images))
    splits[0].passed_over.update([passed_over])
    return splits


def imagefolder(sources: list[Path], work: Path) -> list[Split]:
    """List files CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS/IMAGE.

    Classes are numbered by their sorted names; folders that are numbers are sorted as numbers. Tiny ImageNet's split
    val, a folder of images with a table of their classes, is read as well.
    """
    folder = _only(sources, "the folder that holds one folder per class")
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds one folder per class")
    beside = PassedOver()
    roots = image_folder.splits(folder, beside)
    passed_over = {name: PassedOver() for name in roots}
    found = {name: image_folder.images(root, passed_over[name]) for name, root in roots.items()}
    image_folder.check_equal(folder, roots, found)
    passed_over[next(iter(roots))].update([beside])
    classes = class_names.ordered(set().union(*found.values()))
    splits = []
    for name, root in roots.items():
        images: list[RawImage] = []
        known: set[str] = set()
        for label, class_name in enumerate(classes):
            for path in found[name].get(class_name, []):
                key = _unique(_key(path.relative_to(root).with_suffix("")), known)
                images.append(RawImage(key, label, str(path), 0, path.stat().st_size))
        origin = str(root) if name not in ("", root.name) else ""
        splits.append(Split(name, classes, images, origin, passed_over[name]))
    if class_names.all_numbers(classes):
        remark = f"folders that are numbers are sorted as numbers: {class_names.shortened(classes)}"
        splits[0] = replace(splits[0], remarks=(remark,))
    return splits


def images(sources: list[Path], work: Path) -> list[Split]:
    """List all images in a folder and below it, without classes."""
    folder = _only(sources, "the folder of the images")
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds the images")
    passed_over, known = PassedOver(), set[str]()
    paths = image_folder.every_image(folder, passed_over)
    keys = [_unique(_key(path.relative_to(folder).with_suffix("")), known) for path in paths]
    found = [
        RawImage(key, UNLABELLED, str(path), 0, path.stat().st_size) for key, path in zip(keys, paths, strict=True)
    ]
    return [Split("", [], found, passed_over=passed_over)]


def cifar10(sources: list[Path], work: Path) -> list[Split]:
    """List the official cifar-10-python.tar.gz."""
    names = {"train": [f"data_batch_{n}" for n in range(1, 6)], "val": ["test_batch"]}
    return cifar.read(
        _only(sources, "cifar-10-python.tar.gz"), work, names, b"labels", ("batches.meta", b"label_names")
    )


def cifar100(sources: list[Path], work: Path) -> list[Split]:
    """List the official cifar-100-python.tar.gz, with its 100 fine classes."""
    names = {"train": ["train"], "val": ["test"]}
    return cifar.read(
        _only(sources, "cifar-100-python.tar.gz"), work, names, b"fine_labels", ("meta", b"fine_label_names")
    )


def wds(sources: list[Path], work: Path) -> list[Split]:
    """List the samples of existing WebDataset tars, plain or gzipped."""
    if not sources:
        raise UserError("shards make: give the tars, or a folder that holds them, before the folder OUT")
    passed_over = PassedOver()
    images: list[RawImage] = []
    known: set[str] = set()
    tars = _tars(sources, passed_over)
    for number, path in enumerate(tars):
        shard = scan(plain_tar.unzipped(path, work / f"{number}.tar"), passed_over, str(path))
        check_images(Index(str(path), [], [shard]))
        count_bad_entries(shard, passed_over, str(path))
        for position in range(len(shard)):
            key = shard.key(position)
            if key in known:  # the keys of each tar may count from 0
                key = f"{path.name.split('.')[0]}_{key}"
            key, label = _unique(key, known), int(shard.labels[position])
            images.append(RawImage(key, label, shard.path, int(shard.offsets[position]), int(shard.sizes[position])))
    if not images:
        raise UserError(f"{sources[0]}: its tars hold no sample, a KEY.jpg beside a KEY.cls{passed_over.clause()}")
    if len({image.label == UNLABELLED for image in images}) > 1:
        raise UserError(f"{sources[0]}: some of the tars have labels and some have none; give one kind at a time")
    classes, remarks = kept_names({tar.parent for tar in tars}, max(image.label for image in images))
    return [Split("", classes, images, passed_over=passed_over, remarks=tuple(remarks))]


KINDS: dict[str, Callable[[list[Path], Path], list[Split]]] = {
    "images": images,
    "imagefolder": imagefolder,
    "imagenet": imagenet,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "wds": wds,
}
"""Kinds of raw data sets by name; each function takes sources and a folder for temporary files."""


def _only(sources: list[Path], what: str) -> Path:
    """Return the only source, described as `what` in the error messages. Raises UserError."""
    if len(sources) != 1:
        raise UserError(f"shards make: give one source, {what}")
    if not sources[0].exists():
        raise UserError(f"{sources[0]}: no such file or folder; give {what}")
    return sources[0]


def _tars(sources: list[Path], passed_over: PassedOver) -> list[Path]:
    """Return the tars among `sources` and in the folders among them. Raises UserError."""
    tars = []
    for source in sources:
        paths = list_tars(source, passed_over, (".tar", ".tar.gz", ".tgz")) if source.is_dir() else [source]
        if not paths or not all(path.is_file() for path in paths):
            raise UserError(f"{source}: no tars here; give tars, or a folder that holds them{passed_over.clause()}")
        tars += paths
    return tars


def _key(path: Path) -> str:
    key = "_".join(path.parts).replace(".", "_").replace(" ", "_")
    return key.encode(errors="backslashreplace").decode()  # a file's name may be any bytes


def _unique(key: str, known: set[str]) -> str:
    """Return `key`, followed by a number if it is one of `known`, and add it to them."""
    unique, number = key, 1
    while unique in known:
        number += 1
        unique = f"{key}_{number}"
    known.add(unique)
    return unique


def _tar_of_tars(path: Path, number: dict[str, int], passed_over: PassedOver) -> Iterator[RawImage]:
    """Yield the images of a tar's members WNID.tar, with their offsets in the outer tar. Raises UserError.

    number: Class numbers by WNID. passed_over: Counts members that are no files.
    """
    name = ""
    try:
        with tarfile.open(path, "r:") as outer:
            for inner in plain_tar.files(outer, passed_over, str(path)):
                name = f"'{inner.name}' of it "
                wnid = Path(inner.name).stem
                if wnid not in number:
                    raise UserError(f"{path}: {name}names no class of the devkit; fetch the archives again")
                with tarfile.open(fileobj=outer.extractfile(inner), mode="r:") as tar:
                    for member in plain_tar.files(tar, passed_over, f"{path}: {inner.name}"):
                        offset = inner.offset_data + member.offset_data
                        yield RawImage(Path(member.name).stem, number[wnid], str(path), offset, member.size)
                    plain_tar.check_end(tar)
            name = ""
            plain_tar.check_end(outer)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: {name}is damaged ({error}); fetch the archive again") from None


def _devkit(path: Path) -> tuple[dict[int, str], dict[str, str], list[int]]:
    """Return WNIDs by ILSVRC number, class names by WNID, and each validation image's ILSVRC number."""
    from scipy.io import loadmat

    try:
        plain = io.BytesIO(gzip.decompress(path.read_bytes()))
        with tarfile.open(fileobj=plain, mode="r:") as tar:
            content = {Path(m.name).name: plain_tar.open_member(tar, m).read() for m in tar if m.isfile()}
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [s for s in synsets if int(s["ILSVRC2012_ID"]) <= 1000 and int(s["num_children"]) == 0]
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in leaves}
        names = {str(s["WNID"]): str(s["words"]).split(",")[0] for s in leaves}
        truth = [int(line) for line in content["ILSVRC2012_validation_ground_truth.txt"].split()]
    except Exception as error:  # these readers raise exceptions of any type
        raise UserError(f"{path}: not the ILSVRC-2012 devkit ({error}); fetch it again") from None
    if set(truth) - wnids.keys():
        raise UserError(f"{path}: a validation label names no class; fetch it again")
    return wnids, names, truth
