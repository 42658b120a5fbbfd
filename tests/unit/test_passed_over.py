"""Nothing is passed over in silence: every source counts it by reason, or is refused with a line that names it."""

import os
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparse_mlp_ds.shards import raw_datasets
from sparse_mlp_ds.shards.passed_over import PassedOver
from tests.helpers import archives
from tests.helpers.raw_sources import (
    TRAIN,
    VAL,
    a_folder,
    a_tar,
    cifar,
    layout,
    members_added,
    official,
    piped,
    splits,
    tars,
    tiny_imagenet,
)
from tests.helpers.tars import link, picture, refusal, sample, write_tar

NEEDS = "needs one image and one .cls side by side"
NO_NUMBER = "label is not a class number"
FURTHER = "beside the splits that are made; if it is wanted, give it alone"
NOWHERE = "link that leads nowhere, or where this user may not look"
LINK = "link in place of a file"
JUNK = b"\0\5\26\7\0\2\0\0Mac OS X        "
TOLD = {
    "hidden file": (*a_folder("ant/._0.jpg", ".DS_Store=x"), 2, {"hidden": 2}),
    "copies of a notebook": (*a_folder("ant/.ipynb_checkpoints/0-checkpoint.jpg"), 2, {"hidden": 1}),
    "hidden class": (*a_folder(".cat/0.jpg"), 2, {"hidden": 1}),
    "folders of systems": (
        *a_folder("__MACOSX/ant/._0.jpg", "ant/@eaDir/0.jpg", "lost+found/"), 2, {"made by the operating system": 3},
    ),
    "suffixes": (
        *a_folder("ant/0.heic", "ant/1.heic", "bee/0.txt=x", "bee/x"), 2,
        {"no image by its suffix .heic": 2, "no image by its suffix .txt": 1, "no image, by its lack of a suffix": 1},
    ),
    "beside classes": (*a_folder("labels.csv=x", "1.jpg"), 2, {"outside the classes' folders": 2}),
    "linked file": (*a_folder("ant/1.jpg -> 0.jpg"), 3, {}),
    "linked folder": (*a_folder("ant/more -> ../../far", "../far/1.jpg"), 3, {}),
    "linked class": (*a_folder("cat -> ../far", "../far/1.jpg"), 3, {}),
    "links to nothing": (
        *a_folder("ant/1.jpg -> nowhere.jpg", "ant/2.jpg -> 2.jpg", "cat -> nowhere"), 2, {NOWHERE: 3},
    ),
    "pipe": (
        "imagefolder", lambda tmp_path: [piped(layout(tmp_path / "in", "ant/0.jpg", "bee/0.jpg"))], 2,
        {"neither file nor folder": 1},
    ),
    "links in a circle": (
        *a_folder("ant/up -> ..", "ant/here -> .", "ant/top -> /"), 2, {"link back to a folder that holds it": 3},
    ),
    "train is a class": (*a_folder("train/0.jpg"), 3, {}),
    "beside splits": (*splits("README=x", "doc/x.jpg"), 4, {"outside the splits' folders": 1, FURTHER: 1}),
    "a test split more": (*splits("test/ant/0.jpg"), 4, {FURTHER: 1}),
    "hidden beside splits": (*splits(".cache/x.jpg", "train/.x/0.jpg"), 4, {"hidden": 2}),
    "tiny imagenet": (
        *tiny_imagenet("wnids.txt=x", "train/ant/ant_boxes.txt=x", "test/images/0.JPEG"), 4,
        {"outside the splits' folders": 1, "no image by its suffix .txt": 1, FURTHER: 1},
    ),
    "tiny imagenet's table": (
        *tiny_imagenet("val/images/9.JPEG", table="1.JPEG\tbee\t0\n2.JPEG\tant\t0\n3.JPEG\tant\t0\n"), 4,
        {"no class in val_annotations.txt": 1, "named in val_annotations.txt, but not there": 1},
    ),
    "macos in a tar": (*a_tar(("._x.png", JUNK), ("._0.cls", JUNK), ("a/._0.png", JUNK)), 2, {"hidden": 3}),
    "no sample": (*a_tar(("README", b"x"), ("x.cls", b"1"), ("y.png", b"x")), 2, {NEEDS: 3}),
    "labels": (*a_tar(*((f"x{n}.{s}", b"x.5") for n in range(2) for s in ("png", "cls"))), 2, {NO_NUMBER: 2}),
    "links in a tar": (*a_tar(link("x.png", "0.png"), ("x.cls", b"1"), link("y.cls", "0.cls", tarfile.LNKTYPE)), 2, {
        LINK: 1, NEEDS: 1,
    }),
    "a pipe in a tar": (*a_tar(link("x.png", "", tarfile.FIFOTYPE)), 2, {"neither file nor link in a tar": 1}),
    "folders in a tar": (*a_tar(link("some", "", tarfile.DIRTYPE)), 2, {}),
    "beside tars": (
        *tars("._a.tar=x", "a.tar.zst=x", "b.tar.bz2=x", "README=x", "train/", "index.json={}"), 1,
        {"hidden": 1, "no tar by its suffix .zst": 1, "no tar by its suffix .bz2": 1, "folder": 1,
         "no tar, by its lack of a suffix": 1},
    ),
    "beside archives": (
        *official(lambda folder: layout(folder, "ILSVRC2012_img_test.tar=x", ".DS_Store=x")), 8,
        {"none of the three archives that are read": 2},
    ),
    "no val archive": (*official(lambda folder: (folder / VAL).unlink()), 3, {"not here, so no val is written": 1}),
    "no train archive": (
        *official(lambda folder: (folder / TRAIN).unlink()), 5, {"not here, so no train is written": 1},
    ),
    "macos in archives": (*official(members_added(TRAIN, ("._n01.tar", JUNK))), 8, {"hidden": 1}),
    "macos in an inner archive": (
        *official(lambda folder: members_added(TRAIN)(folder) or write_tar(
            folder / TRAIN, *((f"{wnid}.tar", archives.packed(("._x.JPEG", JUNK), ("x.JPEG", picture())))
                              for wnid in ("n01", "n03", "n07")))), 8, {"hidden": 3},
    ),
    "macos in the val archive": (*official(members_added(VAL, ("._v.JPEG", JUNK))), 8, {"hidden": 1}),
    "links in an archive": (*official(members_added(VAL, link("v.JPEG", "x"))), 8, {"link or special file": 1}),
    "cifar": ("cifar10", cifar, 18, {"neither images nor their names": 1}),
}  # fmt: skip


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def counted(kind, sources, work):
    found = raw_datasets.KINDS[kind](sources, work)
    return found, PassedOver().update(split.passed_over for split in found)


@pytest.mark.parametrize(("kind", "make", "images", "reasons"), TOLD.values(), ids=TOLD.keys())
def test_what_is_passed_over_is_counted_by_reason(tmp_path, work, kind, make, images, reasons):
    found, passed_over = counted(kind, make(tmp_path), work)
    assert sum(len(split.images) for split in found) == images
    assert passed_over.counts == reasons
    lines = passed_over.lines()
    assert len(lines) == len(reasons)
    for reason, count in reasons.items():
        (line,) = [line for line in lines if line.startswith(f"passed over {count}: {reason} (")]
        assert line.endswith(")") and ("such as " in line) == (count > 1)


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val", "dev", "test", "testing", "TEST"])
def test_splits_go_by_their_usual_names(tmp_path, work, train, val):
    kind, make = splits(train=train, val=val)
    found, passed_over = counted(kind, make(tmp_path), work)
    assert [split.name for split in found] == ["train", "val"]
    for split, name in zip(found, (train, val), strict=True):
        assert split.classes == ["ant", "bee"] and len(split.images) == 2
        assert all(Path(image.path).parts[-3] == name for image in split.images)
        assert split.origin == ("" if name == split.name else str(tmp_path / "in" / name))
    assert not passed_over.counts


@pytest.mark.parametrize("name", ["train", "training", "val", "validation", "test"])
def test_one_split_may_be_made_alone(tmp_path, work, name):
    source = layout(tmp_path / "in", f"{name}/ant/0.jpg", f"{name}/bee/0.jpg")
    (split,), _ = counted("imagefolder", [source], work)
    assert (split.name, split.classes) == ("train" if name.startswith("train") else "val", ["ant", "bee"])


def test_tiny_imagenets_held_out_images_get_the_classes_of_its_table(tmp_path, work):
    kind, make = tiny_imagenet()
    (train, val), _ = counted(kind, make(tmp_path), work)
    assert train.classes == val.classes == ["ant", "bee"]
    assert [(image.key, val.classes[image.label]) for image in val.images] == [("images_2", "ant"), ("images_1", "bee")]
    assert [(image.key, image.label) for image in train.images] == [("ant_images_0", 0), ("bee_images_0", 1)]


REFUSED = {
    "class without images": (*a_folder("cat/", "dog/x.txt=x"), "in: class 'cat' and 1 more are without images"),
    "whose reasons are told": (*a_folder("cat/0.heic"), "passed over 1: no image by its suffix .heic ("),
    "class in train alone": (*splits("train/cat/0.jpg"), "in: class 'cat' is in train and not in val"),
    "class in val alone": (*splits("test/cat/0.jpg", val="test"), "in: class 'cat' is in test and not in train"),
    "a table's class alone": (
        *tiny_imagenet("val/images/3.JPEG", table="1.JPEG\tbee\n2.JPEG\tant\n3.JPEG\tcat\n"),
        "in: class 'cat' is in val and not in train",
    ),
    "a table of something": (*tiny_imagenet(table="no table"), "val_annotations.txt: cannot be read ("),
    "a table of no image": (*tiny_imagenet(table="7.JPEG\tbee\n"), "none of the images of val_annotations.txt is here"),
    "two held-out folders": (*splits("valid/ant/0.jpg"), "'val' and 'valid' are names of the same split; keep one"),
    "two training folders": (*splits("Train/ant/0.jpg"), "'Train' and 'train' are names of the same split; keep one"),
    "splits without classes": (
        "imagefolder", lambda tmp_path: [layout(tmp_path / "in", "train/0.jpg", "test/0.jpg")],
        "in/train: no images in folders here; a class is a folder of jpg",
    ),
    "a split among classes": (
        "imagefolder", lambda tmp_path: [layout(tmp_path / "in", "train/ant/0.jpg", "labels/0.jpg")],
        "'train' is named like a split, 'labels' beside it is not; give the folder of the classes",
    ),
    "no usable image": (
        "imagefolder", lambda tmp_path: [layout(tmp_path / "in", "ant/0.heic", "ant/1.heic", ".x/0.jpg")],
        "passed over 2: no image by its suffix .heic (such as ",
    ),
    "no usable sample": (
        "wds", lambda tmp_path: [write_tar(tmp_path / "a.tar", *((f"{n}.avif", b"x") for n in range(3)), ("._x", b""))],
        "a KEY.jpg beside a KEY.cls; passed over 3: needs one image (such as ",
    ),
    "keys end at the first dot": (
        "wds", lambda tmp_path: [write_tar(tmp_path / "a.tar", *sample("img.v1", 0), *sample("img.v2", 1))],
        "has img.v1.png, img.v1.cls, img.v2.png, img.v2.cls; a key ends at the first dot of the name",
    ),
    "no tar": (
        "wds", lambda tmp_path: [layout(tmp_path / "in", "train/a.tar=x", "val/a.tar=x")],
        "no tars here; give tars, or a folder that holds them; passed over 2: folder (such as ",
    ),
    "a batch twice": (
        "cifar10", lambda tmp_path: [
            write_tar(tmp_path / "c.tar.gz", ("a/test_batch", b"x"), ("b/test_batch", b"x"), mode="w:gz")],
        "has 'test_batch' twice; give the official python archive",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "make", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_understood_is_refused_with_its_reasons(tmp_path, work, kind, make, said):
    assert said in refusal(counted, kind, make(tmp_path), work)


@contextmanager
def powerless():
    """Be a user whom permissions bind, which they do not for root."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.mark.parametrize("unreadable", ["", "ant", "ant/deep"])
def test_a_folder_that_cannot_be_read_is_refused(unreadable):
    outside = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        source = layout(outside / "in", "ant/0.jpg", "ant/deep/1.jpg", "bee/0.jpg")
        outside.chmod(0o755)
        (source / unreadable).chmod(0)
        with powerless():
            line = refusal(raw_datasets.imagefolder, [source], outside)
        assert line == f"{source / unreadable}: cannot be read (Permission denied); make it readable, or remove it"
    finally:
        (source / unreadable).chmod(0o755)
        shutil.rmtree(outside)


def test_rare_reasons_share_a_line():
    passed_over = PassedOver()
    for number in range(14):
        for _ in range(number + 1):
            passed_over.add(f"reason {number}", f"example {number}")
    lines = passed_over.lines()
    assert len(lines) == 11
    assert lines[0] == "passed over 14: reason 13 (such as example 13)"
    assert lines[-1] == "passed over 10 for 4 rarer reasons"
    passed_over.add("odd", "a\nb\udce9")
    assert "(a\\nb\\udce9)" in passed_over.clause() or "odd" not in passed_over.clause()
