"""Sources of `shards make` with things in them that are no usable images."""

import os
import tarfile

from tests.helpers import archives
from tests.helpers.tars import picture, sample, write_tar


def layout(folder, *entries):
    """Make files and folders: `a/` is a folder, `a -> b` a link, `a=text` a file of that text, all else an image."""
    for number, entry in enumerate(entries):
        name, _, target = entry.partition(" -> ")
        name, equals, text = name.partition("=")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(text.encode() if equals else picture(number))
    return folder


def a_folder(*entries):
    return "imagefolder", lambda tmp_path: [layout(tmp_path / "in", "ant/0.jpg", "bee/0.jpg", *entries)]


def piped(folder):
    os.mkfifo(folder / "ant/1.jpg")
    return folder


def splits(*entries, train="train", val="val"):
    whole = [f"{part}/{name}/0.jpg" for part in (train, val) for name in ("ant", "bee")]
    return "imagefolder", lambda tmp_path: [layout(tmp_path / "in", *whole, *entries)]


def tiny_imagenet(*entries, table="1.JPEG\tbee\t0\t0\n2.JPEG\tant\t0\t0\n"):
    whole = ("train/ant/images/0.JPEG", "train/bee/images/0.JPEG", "val/images/1.JPEG", "val/images/2.JPEG")
    return "imagefolder", lambda tmp_path: [
        layout(tmp_path / "in", *whole, f"val/val_annotations.txt={table}", *entries)
    ]


def a_tar(*members):
    return "wds", lambda tmp_path: [write_tar(tmp_path / "a.tar", *sample("0", 0), *members, *sample("1", 1))]


def tars(*entries):
    def make(tmp_path):
        write_tar(tmp_path / "in/a.tar", *sample("0", 0))
        return [layout(tmp_path / "in", *entries)]

    return "wds", make


def official(change):
    def make(tmp_path):
        folder = archives.imagenet(tmp_path / "in", per_class=1)
        change(folder)
        return [folder]

    return "imagenet", make


def members_added(name, *members):
    """Add members to one of ImageNet's archives, in front of its own."""

    def change(folder):
        with tarfile.open(folder / name) as tar:
            own = [(member.name, tar.extractfile(member).read()) for member in tar]
        write_tar(folder / name, *members, *own)

    return change


def cifar(tmp_path):
    return [archives.cifar(tmp_path)[0]]


TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
