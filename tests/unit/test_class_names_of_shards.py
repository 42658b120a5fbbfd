"""Names and numbers of classes in data sets that are made."""

import json

import pytest

from sparse_mlp_ds.data import class_names
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.shards import raw_datasets
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.made_checkpoints import call
from tests.helpers.named_shards import NAMES, check, shards
from tests.helpers.tars import picture, refusal, sample, write_tar


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FOURTEEN = [str(number) for number in range(14)]


def folders(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(picture(number))


@pytest.mark.parametrize(
    "names, expected",
    [
        (["10", "9", "2", "1"], ["1", "2", "9", "10"]),
        (FOURTEEN, FOURTEEN),
        (["1", "01", "0"], ["0", "01", "1"]),
        (["10", "9", "2b"], ["10", "2b", "9"]),
        (["bee", "ant"], ["ant", "bee"]),
    ],
)
@pytest.mark.parametrize("layout", ["{name}", "train/{name}"])
def test_folders_that_are_numbers_are_sorted_as_numbers(tmp_path, layout, names, expected):
    folders(tmp_path / "in", [layout.format(name=name) for name in names])
    (split,) = raw_datasets.imagefolder([tmp_path / "in"], tmp_path)
    assert split.classes == expected
    assert {image.key: image.label for image in split.images} == {f"{name}_a": n for n, name in enumerate(expected)}


def test_the_same_pictures_as_tars_and_as_folders_have_the_same_labels(capsys, tmp_path):
    """The wrong 16.67 %: a model trained on tars with the labels 0 to 11, evaluated on folders 0 to 11."""
    names = [str(n) for n in range(12)]
    write_tar(tmp_path / "train/a.tar", *(part for n in range(12) for part in sample(f"{n}", n)))
    make_index(tmp_path / "train")
    folders(tmp_path / "in", names)
    code, said, lines = call(capsys, "shards", "make", "imagefolder", tmp_path / "in", tmp_path / "val", "--workers=1")
    assert (code, lines) == (0, [])
    assert said.startswith("folders that are numbers are sorted as numbers: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11\n")
    assert check(capsys, tmp_path, "data.classes=12")[0] == 0
    made = index_file.load(tmp_path / "val")
    colours = {made.shards[0].key(place): int(label) for place, label in enumerate(made.shards[0].labels)}
    assert colours == {f"{n}_a": n for n in range(12)}


REINDEXED = {
    "as it was": lambda folder: None,
    "another tar is there": lambda folder: write_tar(folder / "b-0.tar", *sample("x", 4)),
    "a tar is gone": lambda folder: (write_tar(folder / "b-0.tar", *sample("x", 1)), (folder / "a-0.tar").unlink()),
    "its lists are damaged": lambda folder: (folder / "index.json").write_text(
        json.dumps(json.loads((folder / "index.json").read_text()) | {"shards": 7})
    ),
}


@pytest.mark.parametrize("change", REINDEXED.values(), ids=REINDEXED)
def test_names_survive_an_index_that_is_written_again(capsys, tmp_path, change):
    shards(tmp_path / "in", NAMES)
    change(tmp_path / "in")
    code, said, lines = call(capsys, "shards", "index", tmp_path / "in")
    assert (code, lines) == (0, []) and "classes ant, bee, cat, dog, elk" in said
    assert index_file.load(tmp_path / "in").classes == NAMES


def test_an_index_without_names_grows(capsys, tmp_path):
    write_tar(tmp_path / "in/a.tar", *sample("a", 1))
    assert "classes 0, 1\n" in call(capsys, "shards", "index", tmp_path / "in")[1]
    write_tar(tmp_path / "in/b.tar", *sample("b", 4))
    assert "classes 0, 1, 2, 3, 4\n" in call(capsys, "shards", "index", tmp_path / "in")[1]


def test_an_index_whose_names_do_not_suffice_any_more_is_refused(capsys, tmp_path):
    shards(tmp_path / "in", NAMES)
    write_tar(tmp_path / "in/b.tar", *sample("x", 5))
    code, _, (line,) = call(capsys, "shards", "index", tmp_path / "in")
    assert code == 2 and "has label 5, but 5 classes are named" in line
    (tmp_path / "names").write_text("\ufeffant\r\nbee\ncat\ndog\nelk\nfox\n", encoding="utf-8", newline="")
    assert call(capsys, "shards", "index", tmp_path / "in", "--classes", tmp_path / "names")[0] == 0
    assert index_file.load(tmp_path / "in").classes == [*NAMES, "fox"]


@pytest.mark.parametrize(
    "name, content",
    [
        ("names", b"\xff\xfea"),
        ("names", None),
        ("a.json", b"{"),
        ("a.json", b"[]"),
        ("a.json", b'{"classes": "ab"}'),
    ],
)
def test_a_file_of_names_that_cannot_be_read_is_a_line(tmp_path, name, content):
    if content:
        (tmp_path / name).write_bytes(content)
    line = refusal(class_names.read, tmp_path / name)
    assert line.startswith(f"--classes {tmp_path / name}: ") and ("one class name per line" in line or "UTF-8" in line)


def test_names_come_from_a_different_index(capsys, tmp_path):
    """The way out where two data sets have two names for one class."""
    shards(tmp_path / "train", NAMES), shards(tmp_path / "val", ["n01", "n02", "n03", "n04", "n05"])
    code, _, (line,) = check(capsys, tmp_path)
    assert code == 2 and "class 0 is 'n01', but 'ant'" in line and "shards index FOLDER --classes FILE" in line
    names = tmp_path / "train/index.json"
    assert call(capsys, "shards", "index", tmp_path / "val", "--classes", names)[0] == 0
    assert check(capsys, tmp_path)[0] == 0


@pytest.mark.parametrize("as_folder", [True, False])
def test_names_survive_when_tars_are_made_again(capsys, tmp_path, as_folder):
    shards(tmp_path / "in", NAMES)
    source = tmp_path / "in" if as_folder else tmp_path / "in/a-0.tar"
    assert call(capsys, "shards", "make", "wds", source, tmp_path / "out", "--workers=1")[0] == 0
    assert index_file.load(tmp_path / "out").classes == NAMES


def test_tars_with_fewer_classes_than_their_neighbours_go_together(capsys, tmp_path):
    shards(tmp_path / "a", NAMES[:3]), shards(tmp_path / "b", NAMES)
    code, _, lines = call(capsys, "shards", "make", "wds", tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert (code, lines) == (0, []) and index_file.load(tmp_path / "out").classes == NAMES


def test_data_without_any_names_goes_on_as_before(capsys, tmp_path):
    for part in ("train", "val"):
        write_tar(tmp_path / part / "a.tar", *(part for n in range(10) for part in sample(f"{n}", n % 5)))
        make_index(tmp_path / part)
    code, said, lines = check(capsys, tmp_path)
    assert (code, lines) == (0, []) and "WARNING" not in said
