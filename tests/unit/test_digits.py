"""The embedded digits: complete, split, sound, and made but once however many processes ask."""

import tarfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparse_mlp_ds.data import index
from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.shards import digits, summary, verify
from tests.helpers.processes import together
from tests.helpers.tars import refusal


def make(folder, barrier):
    barrier.wait()
    digits.make(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The digits, made by two processes at the same time."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert together(make, (folder,), (folder,)) == [0, 0]
    return folder


def test_two_processes_at_once_leave_one_sound_set(made):
    assert [path.name for path in made.parent.iterdir()] == ["digits"]  # nobody's leftovers
    assert sorted(path.name for path in made.iterdir()) == ["train", "val"]
    for split in ("train", "val"):
        found = index.load(made / split)
        assert sorted(path.name for path in (made / split).iterdir()) == [*(s.name for s in found.shards), "index.json"]
        assert [line for shard in found.shards for line in verify.verify(shard)] == []


def test_the_digits_are_all_there_and_held_out_ones_are_others(made):
    known, keys = load_digits(), {}
    for split in ("train", "val"):
        found = index.load(made / split)
        assert found.classes == [str(n) for n in range(10)]
        assert not summary.sorted_by_class(found)
        keys[split] = []
        for sample in range(len(found)):
            shard, place = found.locate(sample)
            number = int(shard.key(place))
            assert shard.labels[place] == known.target[number]
            keys[split].append(number)
    assert (len(keys["train"]), len(keys["val"])) == (1437, 360)
    assert sorted(keys["train"] + keys["val"]) == list(range(1797))


def test_scikit_learns_file_is_read_as_it_reads_it_itself(monkeypatch):
    known = load_digits()
    for _ in range(2):
        images, labels = digits._originals()
        assert np.array_equal(images, known.images) and np.array_equal(labels, known.target)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as if the file had moved


def test_making_them_again_changes_nothing(made):
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))}
    digits.make(made)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))} == before


def test_offsets_lead_to_the_images(made):
    found = index.load(made / "val")
    shard, place = found.locate(130)  # the eleventh of the second tar
    assert (shard.name, place) == ("digits-000001.tar", 10)
    with tarfile.open(shard.path) as tar:
        expected = tar.extractfile(f"{shard.key(place)}.png").read()
        assert int(tar.extractfile(f"{shard.key(place)}.cls").read()) == shard.labels[place]
    with open(shard.path, "rb") as file:
        content = file.read()[shard.offsets[place] :][: shard.sizes[place]]
    assert content == expected
    pixels = np.asarray(Picture(content).upright())
    assert pixels.shape == (8, 8, 3)
    original = load_digits().images[int(shard.key(place))]
    assert np.abs(pixels[:, :, 0] * (16 / 255) - original).max() < 0.05
    assert [found.locate(n) for n in (0, 119, 120, 359)] == [
        (found.shards[0], 0), (found.shards[0], 119), (found.shards[1], 0), (found.shards[2], 119),
    ]  # fmt: skip


def test_a_folder_that_holds_something_else_is_refused_and_left(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    line = refusal(digits.make, tmp_path / "taken")
    assert line.startswith(f"{tmp_path / 'taken'}: ") and "name another folder" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "file"]
