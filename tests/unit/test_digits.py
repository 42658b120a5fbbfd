"""The embedded digits: complete, split, sound, and made but once however many processes ask."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sparse_mlp_ds.data import digits, index, shards
from sparse_mlp_ds.data.decode import decode

REPOSITORY = Path(shards.__file__).parents[2]

MAKE = """
import sys, sklearn.datasets, webdataset
from pathlib import Path
from sparse_mlp_ds.data import digits
print("ready", flush=True)
sys.stdin.readline()
digits.make(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The digits, made by two processes at the same time."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    command = [sys.executable, "-c", MAKE, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    both = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.wait(timeout=120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    return folder


def test_two_processes_at_once_leave_one_sound_set(made):
    assert [path.name for path in made.parent.iterdir()] == ["digits"]  # nobody's leftovers
    assert sorted(path.name for path in made.iterdir()) == ["train", "val"]
    for split in ("train", "val"):
        assert shards.verify(made / split) == []


def test_the_digits_are_all_there_and_held_out_ones_are_others(made):
    contents = {}
    for split in ("train", "val"):
        found = index.load(made / split)
        contents[split] = [key for shard in found.shards for key in shard.keys]
        assert found.classes == [str(n) for n in range(10)]
        assert {label for shard in found.shards for label in shard.labels} == set(range(10))
        index.check_labels(found, 10)
    assert (len(contents["train"]), len(contents["val"])) == (1437, 360)
    assert len({*contents["train"], *contents["val"]}) == 1797


def test_making_them_again_changes_nothing(made):
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))}
    digits.make(made)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(made.rglob("*"))} == before


def test_offsets_lead_to_the_images(made):
    found = index.load(made / "val")
    shard, place = found.locate(130)  # the eleventh of the second tar
    assert (shard.file, place) == ("digits-000001.tar", 10)
    with tarfile.open(made / "val" / shard.file) as tar:
        expected = tar.extractfile(f"{shard.keys[place]}.png").read()
        assert int(tar.extractfile(f"{shard.keys[place]}.cls").read()) == shard.labels[place]
    content = (made / "val" / shard.file).read_bytes()[shard.offsets[place] :][: shard.sizes[place]]
    assert content == expected
    assert decode(content, "here").size == (8, 8)
    assert [found.locate(n) for n in (0, 119, 120, 359)] == [
        (found.shards[0], 0), (found.shards[0], 119), (found.shards[1], 0), (found.shards[2], 119),
    ]  # fmt: skip
