"""Images that stay files of their own: indexed, read in the same order as from tars, and verified."""

import json
import shutil

import pytest
import torch

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import loader, sources
from sparse_mlp_ds.data.config import Data, View
from sparse_mlp_ds.data.order import micro_batches
from tests.helpers.named_shards import NAMES, check
from tests.helpers.named_shards import shards as labelled
from tests.helpers.tars import picture, refusal, write_tar


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Twelve images in three folders."""
    monkeypatch.chdir(tmp_path)
    for n in range(12):
        path = tmp_path / "photos" / NAMES[n % 3] / ("deep" if n % 2 else "") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, "png", (20, 20)))
    (tmp_path / "photos/notes.txt").write_text("no image")
    return tmp_path / "photos"


def data_of(folder, **more):
    return Data(train=str(folder), workers=0, **more)


def epoch(data, views=(View(),)):
    """All batches of an epoch, and the samples' keys in their order."""
    indexes = sources.open_sources(data, data.train)
    order = sources.training_order(data, indexes, 4, 7)
    (index,) = indexes
    dataset = loader.ShardDataset(index, 16, data.classes, views, 7, order)
    slots = list(micro_batches(order, range(order.steps_per_epoch), range(4)))
    places = [index.locate(sample) for slot in slots for sample in slot.samples.tolist()]
    return list(loader.load(dataset, slots, 0)), [shard.key(position) for shard, position in places]


@pytest.mark.parametrize("kind", ["images", "imagefolder"])
def test_files_are_indexed_where_they_are(photos, shards, kind):
    code, said, complaints = shards("index", photos, "--files", kind)
    assert (code, complaints) == (0, []) and said[0].startswith("passed over 1: ")
    about = "without labels" if kind == "images" else "3 classes"
    assert said[-1] == f"{photos}: 12 images in files of their own, {about}"
    (shard,) = index_file.load(photos).shards
    assert (photos / shard.files[0].decode()).is_file() and sum(shard.sizes) == shard.bytes
    assert sorted(set(shard.labels.tolist())) == ([-1] if kind == "images" else [0, 1, 2])
    assert shards("index", photos, "--files", kind)[1] == said, "index.json is none of the images"
    assert shards("verify", photos) == (0, [f"{photos}: 12 images, all sound"], [])
    first = (photos / "index.json").read_bytes()
    (photos / "ant/0.png").write_bytes(picture(99, "png", (90, 90)))
    shards("index", photos, "--files", kind)
    assert (photos / "index.json").read_bytes() != first


def test_the_order_is_that_of_tars(photos, shards, tmp_path):
    """A tar of the same images in the order of their paths gives the same batches, view by view."""
    shards("index", photos, "--files", "images")
    files, keys = epoch(data_of(photos))
    assert len(files) == 3 and sorted(keys) == sorted(set(keys))
    listed = [path.decode() for path in index_file.load(photos).shards[0].files]
    members = [(f"{n:02d}.png", (photos / path).read_bytes()) for n, path in enumerate(listed)]
    write_tar(tmp_path / "tars/a.tar", *members)
    shards("index", tmp_path / "tars")
    for one, other in zip(files, epoch(data_of(tmp_path / "tars"))[0], strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.numbers, other.numbers)


def test_splits_get_an_index_each(photos, shards, tmp_path):
    shutil.copytree(photos, tmp_path / "both/Training"), shutil.copytree(photos, tmp_path / "both/val")
    assert shards("index", tmp_path / "both", "--files", "imagefolder")[0] == 0
    for part in ("Training", "val"):
        assert index_file.load(tmp_path / "both" / part).classes == NAMES[:3]


def test_a_run_reads_them(photos, shards, capsys, tmp_path):
    shards("index", photos, "--files", "imagefolder")
    labelled(tmp_path / "val", NAMES[:3])
    code, said, complaints = check(capsys, tmp_path, "data.train=photos", "data.classes=3")
    assert code == 0 and "images 12 for training, 6 held out, 3 classes" in said, complaints


def test_files_that_are_gone_or_changed_are_named(photos, shards):
    shards("index", photos, "--files", "images")
    (photos / "bee/4.png").unlink()
    (photos / "cat/2.png").write_bytes(b"changed")
    code, _, lines = shards("verify", photos)
    assert code == 2 and len(lines) == 3
    assert f"error: {photos}/bee/4.png: No such file or directory; index the folder again" in lines
    batches, _ = epoch(data_of(photos))
    bad = [one for batch in batches for one in batch.bad_samples]
    assert {one.key: one.reason for one in bad} == {"bee_4": "read", "cat_2": "read"}
    shutil.rmtree(photos / "ant")
    assert "is missing; index the folder's images again" in refusal(epoch, data_of(photos))


@pytest.mark.parametrize("path", ["/etc/passwd", "../photos/ant/0.png", "ant/../../x.png", "", "a\0b"])
def test_an_index_does_not_lead_out_of_its_folder(photos, shards, path):
    shards("index", photos, "--files", "images")
    record = json.loads((photos / "index.json").read_text())
    record["shards"][0]["files"][3] = path
    (photos / "index.json").write_text(json.dumps(record))
    assert "leaves the folder" in refusal(index_file.load, photos)


def test_bad_input_is_one_line(photos, shards, tmp_path):
    for arguments, part in {
        (tmp_path / "nothing", "--files", "images"): "no such file or folder",
        (photos, "--files", "images", "--out", "x.json"): "--files takes a local folder alone",
        ("https://host/photos", "--files", "images"): "--files takes a local folder alone",
    }.items():
        code, _, (line,) = shards("index", *arguments)
        assert code == 2 and part in line
