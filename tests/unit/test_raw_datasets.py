"""Listing what a data set is made from: official archives, folders and tars; labels, names, places, refusals."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.shards import raw_datasets
from tests.helpers import archives
from tests.helpers.tars import colour, picture, refusal, sample, write_tar


def listed(kind, *sources, work):
    """The splits by name."""
    work.mkdir(exist_ok=True)
    return {split.name: split for split in raw_datasets.KINDS[kind](list(sources), work)}


def read(original):
    with open(original.path, "rb") as file:
        file.seek(original.offset)
        return file.read(original.size)


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def archive_folder(tmp_path):
    return archives.imagenet(tmp_path / "official")


def test_imagenet_is_read_from_its_archives_without_unpacking(archive_folder, work):
    splits = listed("imagenet", archive_folder, work=work)
    train, val = splits["train"], splits["val"]
    assert train.classes == val.classes == ["goldfish", "tabby", "pickup"]  # by WNID
    assert len(train.images) == 12
    for one in train.images:
        assert abs(colour(read(one))[0] - 10 * one.label) < 4
        assert one.key.startswith(("n01_", "n03_", "n07_")[one.label])
    assert [one.key for one in val.images] == [f"ILSVRC2012_val_{n:08d}" for n in range(1, 6)]
    assert [one.label for one in val.images] == [0, 2, 1, 1, 2]  # TRUTH, by WNID
    for n, one in enumerate(val.images, start=1):
        assert abs(colour(read(one))[0] - 10 * n) < 4
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("missing, there", [("img_val", "train"), ("img_train", "val")])
def test_one_of_imagenets_splits_may_be_made_alone(archive_folder, work, missing, there):
    (archive_folder / f"ILSVRC2012_{missing}.tar").unlink()
    assert list(listed("imagenet", archive_folder, work=work)) == [there]


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def spoil(path, at, length=3):
    content = bytearray(path.read_bytes())
    content[at : at + length] = bytes(byte ^ 255 for byte in content[at : at + length])
    path.write_bytes(content)


TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
BAD_IMAGENETS = {
    "no archives": (lambda f: [(f / TRAIN).unlink(), (f / VAL).unlink()], ": neither ILSVRC2012_img_train.tar nor"),
    "no devkit": (lambda f: (f / DEVKIT).unlink(), f"{DEVKIT}: missing"),
    "devkit cut": (lambda f: cut(f / DEVKIT, 200), f"{DEVKIT}: not the ILSVRC-2012 devkit ("),
    "devkit spoilt": (lambda f: spoil(f / DEVKIT, 300, 30), f"{DEVKIT}: not the ILSVRC-2012 devkit ("),
    "devkit of something": (
        lambda f: write_tar(f / DEVKIT, ("meta.mat", b"x" * 999), mode="w:gz"), "not the ILSVRC-2012 devkit (",
    ),
    "a label that is no class": (lambda f: archives.devkit(f, [3, 1, 2, 2, 1001]), "a validation label names no class"),
    "one label too many": (lambda f: archives.devkit(f, [*archives.TRUTH, 1]), "5 images, the devkit has 6 labels"),
    "train cut": (lambda f: cut(f / TRAIN, (f / TRAIN).stat().st_size // 2), f"{TRAIN}: 'n03.tar' of it is damaged ("),
    "train's second header": (lambda f: spoil(f / TRAIN, 512 + 10240), f"{TRAIN}: is damaged (bad header at 10752)"),
    "an inner header": (lambda f: spoil(f / TRAIN, 512 + 1536), f"{TRAIN}: 'n07.tar' of it is damaged ("),
    "an inner first header": (lambda f: spoil(f / TRAIN, 512), f"{TRAIN}: 'n07.tar' of it is damaged ("),
    "val cut": (lambda f: cut(f / VAL, 3000), f"{VAL}: "),
    "val's second header": (lambda f: spoil(f / VAL, 1536), f"{VAL}: not a readable plain tar (bad header"),
    "a foreign class": (
        lambda f: write_tar(f / TRAIN, ("n99.tar", archives.packed())), "'n99.tar' of it names no class of the devkit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change, said", BAD_IMAGENETS.values(), ids=BAD_IMAGENETS.keys())
def test_a_damaged_imagenet_is_refused_by_name_and_never_taken_for_a_smaller_one(archive_folder, work, change, said):
    change(archive_folder)
    line = refusal(listed, "imagenet", archive_folder, work=work)
    assert line.startswith(str(archive_folder))
    assert said in line


@pytest.mark.parametrize("dump", archives.PICKLERS.values(), ids=archives.PICKLERS.keys())
@pytest.mark.parametrize("kind", [10, 100])
def test_cifar_is_read_from_its_python_archive(tmp_path, work, kind, dump):
    archive, expected = archives.cifar(tmp_path, kind, dump)
    splits = listed(f"cifar{kind}", archive, work=work)
    assert list(splits) == ["train", "val"]
    for name, (pixels, labels) in expected.items():
        found = splits[name].images
        assert splits[name].classes == [f"class {n}" for n in range(kind)]
        assert [one.label for one in found] == labels
        assert len({one.key for one in found}) == len(labels)
        for one, image in zip(found, pixels, strict=True):
            raw = np.frombuffer(read(one), np.uint8).reshape(one.shape)
            assert np.array_equal(raw.transpose(2, 0, 1), image)


class Call:
    """A pickle of it calls a function when read by Python's own reader."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "numpy.fromfile": lambda mark: Call(np.fromfile, str(mark)),
    "pickle.loads": lambda mark: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {mark}"))),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_cifar_that_would_call_something_is_refused_and_calls_nothing(tmp_path, work, call):
    mark = tmp_path / "called"
    change = lambda name, batch: batch | ({b"batch_label": call(mark)} if name == "test_batch" else {})  # noqa: E731
    archive, _ = archives.cifar(tmp_path, dump=archives.PICKLERS["protocol2"], change=change)
    line = refusal(listed, "cifar10", archive, work=work)
    assert line.startswith(f"{archive}: not the official python archive (it asks for ")
    assert not mark.exists()


def test_a_cifar_cannot_make_arrays_of_pointers(tmp_path, work):
    forged = Call(np.ndarray, (1,), "O", b"A" * 8)  # reading such an array would end the process, or worse
    change = lambda name, batch: batch | {b"data": forged}  # noqa: E731
    archive, _ = archives.cifar(tmp_path, dump=archives.PICKLERS["protocol2"], change=change)
    assert "not the official python archive (" in refusal(listed, "cifar10", archive, work=work)


PIXELS = np.zeros((3, 3072), np.uint8)
BAD_CIFARS = {
    "labels are none": lambda batch: batch | {b"labels": [10, 0, 0]},
    "negative label": lambda batch: batch | {b"labels": [-1, 0, 0]},
    "a label too few": lambda batch: batch | {b"labels": [0, 0]},
    "no labels": lambda batch: {b"data": PIXELS},
    "no pixels": lambda batch: {b"labels": [0, 0, 0]},
    "pixels are floats": lambda batch: batch | {b"data": PIXELS.astype(np.float32)},
    "pixels are few": lambda batch: batch | {b"data": PIXELS[:, :3000]},
    "no dictionary": lambda batch: [1, 2],
}


@pytest.mark.parametrize("change", BAD_CIFARS.values(), ids=BAD_CIFARS.keys())
def test_a_wrong_cifar_is_refused(tmp_path, work, change):
    dump = archives.PICKLERS["protocol2"]
    archive, _ = archives.cifar(tmp_path, dump=dump, change=lambda name, batch: change(batch))
    assert refusal(listed, "cifar10", archive, work=work).startswith(f"{archive}: not the official python archive (")


def test_a_damaged_cifar_is_refused(tmp_path, work):
    archive, _ = archives.cifar(tmp_path)
    assert "has no 'meta'; give the official python archive" in refusal(listed, "cifar100", archive, work=work)
    whole = archive.read_bytes()
    for damage in (lambda: cut(archive, len(whole) // 2), lambda: spoil(archive, len(whole) // 2, 40)):
        damage()
        assert f"{archive}: cannot be unzipped (" in refusal(listed, "cifar10", archive, work=work)
        archive.write_bytes(whole)
    assert list(listed("cifar10", archive, work=work)) == ["train", "val"]


def image(path, value=0, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(value, kind))


def test_a_folder_of_classes_is_one_split(tmp_path, work):
    for number, name in enumerate(["dog/b.png", "dog/deep/er/a.png", "cat/a.PNG", "cat/notes.txt", ".hidden/c.png"]):
        image(tmp_path / "source" / name, number)
    (split,) = listed("imagefolder", tmp_path / "source", work=work).values()
    assert (split.name, split.classes) == ("", ["cat", "dog"])
    assert [(one.key, one.label, colour(read(one))[0]) for one in split.images] == [
        ("cat_a", 0, 2), ("dog_b", 1, 0), ("dog_deep_er_a", 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [("train", "val"), ("train",), ("val",)])
def test_train_and_val_folders_are_splits_with_the_same_classes(tmp_path, work, parts):
    for part in parts:
        image(tmp_path / f"source/{part}/one/a.png")
        image(tmp_path / f"source/{part}/two/a.png")
    splits = listed("imagefolder", tmp_path / "source", work=work)
    assert tuple(splits) == parts
    for name, split in splits.items():
        assert split.classes == ["one", "two"]
        assert [split.classes[one.label] for one in split.images] == ["one", "two"]
        assert all(Path(one.path).parts[-3] == name for one in split.images)


def test_train_beside_other_folders_is_a_class(tmp_path, work):
    for name in ("train/a.png", "plane/a.png"):
        image(tmp_path / "source" / name)
    (split,) = listed("imagefolder", tmp_path / "source", work=work).values()
    assert split.classes == ["plane", "train"]


def test_every_file_gets_a_key_of_its_own(tmp_path, work):
    odd = os.fsdecode(b"caf\xe9.png")  # no UTF-8
    for name in ("a/x.png", "a/x.jpg", "a/x.jpeg", "a/x_2.png", "a/x y.png", "a/x_y.png", "a/x.y.png", f"a/{odd}"):
        image(tmp_path / "source" / name)
    (split,) = listed("imagefolder", tmp_path / "source", work=work).values()
    keys = [one.key for one in split.images]
    assert len(set(keys)) == 8
    assert all("." not in key and " " not in key and key.encode() for key in keys)


def test_what_is_no_folder_of_classes_is_refused(tmp_path, work):
    def line(*names):
        return refusal(listed, "imagefolder", *(tmp_path / name for name in names), work=work)

    image(tmp_path / "flat/a.png")
    assert "no images in folders here" in line("flat")
    assert "is no folder" in line("flat/a.png")
    assert "no such file or folder" in line("nowhere")
    assert "give one source" in line() and "give one source" in line("flat", "flat")


def test_tars_are_listed_plain_or_gzipped_and_their_defects_named(tmp_path, work):
    write_tar(tmp_path / "a.tar", *sample("0", 1), ("bad.png", b""), *sample("1", 2))
    write_tar(tmp_path / "b.tar.gz", *sample("0", 3), mode="w:gz")
    write_tar(tmp_path / "c.tgz", *sample("x", 4), mode="w:gz")
    (tmp_path / "a.tar.sha256").write_text("no tar")
    by_name = [tmp_path / name for name in ("a.tar", "b.tar.gz", "c.tgz")]
    for sources in (by_name, [tmp_path], [by_name[0], tmp_path / "b.tar.gz", tmp_path / "c.tgz"]):
        (split,) = listed("wds", *sources, work=work).values()
        assert [(one.key, one.label) for one in split.images] == [("0", 1), ("1", 2), ("b_0", 3), ("x", 4)]
        assert [colour(read(one))[0] for one in split.images] == [1, 2, 3, 4]
        assert split.classes == ["0", "1", "2", "3", "4"]
        lines = split.passed_over.lines()
        place = f"{tmp_path / 'a.tar'}: 'bad' at offset 2048"
        assert f"passed over 1: needs one image and one .cls side by side ({place}, has bad.png)" in lines
        assert len(lines) == (3 if sources == [tmp_path] else 1)  # the folder holds two more things that are no tars


def test_tars_of_the_same_name_are_not_taken_for_one_another(tmp_path, work):
    tars = [tmp_path / f"{n}/a.tar.gz" for n in range(4)]
    for number, path in enumerate(tars):
        write_tar(path, *sample("0", number), mode="w:gz")
    (split,) = listed("wds", *tars, work=work).values()
    assert [colour(read(one))[0] for one in split.images] == [0, 1, 2, 3]
    assert len({one.key for one in split.images}) == 4


def test_tars_that_cannot_be_used_are_refused(tmp_path, work):
    assert "give the tars" in refusal(listed, "wds", work=work)
    assert f"{tmp_path / 'a.tar'}: no tars here" in refusal(listed, "wds", tmp_path / "a.tar", work=work)
    assert "no tars here" in refusal(listed, "wds", tmp_path, work=work)
    path = write_tar(tmp_path / "a.tar.gz", *sample("0", 1), mode="w:gz")
    cut(path, 60)
    assert f"{path}: cannot be unzipped (" in refusal(listed, "wds", path, work=work)
    write_tar(path, *sample("0", 1), mode="w:gz")
    spoil(path, 40, 20)
    assert f"{path}: cannot be unzipped (" in refusal(listed, "wds", path, work=work)
    write_tar(path, ("a.png", b""), mode="w:gz")
    assert "its tars hold no sample" in refusal(listed, "wds", path, work=work)
