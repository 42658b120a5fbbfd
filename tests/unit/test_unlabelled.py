"""Images without labels: made, indexed, and pretrained on; labels are asked for only where something reads them."""

import itertools
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import UNLABELLED, load
from sparse_mlp_ds.shards.scan import make_index, scan
from sparse_mlp_ds.train import evaluate
from tests.helpers.named_shards import NAMES, check
from tests.helpers.named_shards import shards as labelled
from tests.helpers.tars import picture, refusal, sample, write_tar

OPTIMIZER = {"name": "adamw", "base_lr": 0.001}
PRETRAIN = {"kind": "pretrain", "epochs": 1, "batch_size": 4, "views": [{}, {}], "optimizer": OPTIMIZER}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def photos(folder):
    """Twelve images at all depths, and what a user's folder holds besides."""
    for n in range(12):
        path = folder / ["", "2024", "2024/June 1st", "train", "val/a/b"][n % 5] / f"IMG.{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, "jpeg", (40, 40)))
    (folder / "2024/notes.txt").write_text("no image")
    (folder / ".DS_Store").write_text("hidden")
    return folder


def names_in(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def unlabelled(folder, images=12):
    """A tar as of a different program: images, some with a caption, and no class numbers."""
    captions = [[(f"{n}.txt", b"a caption")] if n % 3 == 0 else [] for n in range(images)]
    write_tar(folder / "a.tar", *itertools.chain(*([(f"{n}.png", picture(n)), *captions[n]] for n in range(images))))
    make_index(folder)
    return folder


def test_all_images_below_a_folder_are_made_into_tars(shards, tmp_path):
    command = ("make", "images", photos(tmp_path / "photos"), tmp_path / "out", "--per-shard", 5, "--workers", 1)
    code, said, complaints = shards(*command)
    assert (code, complaints) == (0, [])
    assert said[-1] == f"{tmp_path}/out: 12 images in 3 tars, without labels"
    assert {line[:14] for line in said[:-1]} == {"passed over 1:"} and len(said) == 3
    index = load(tmp_path / "out")
    assert index.classes == [] and all((shard.labels == UNLABELLED).all() for shard in index.shards)
    keys = sorted(shard.key(n) for shard in index.shards for n in range(len(shard)))
    assert len(set(keys)) == 12 and "2024_June_1st_IMG_2" in keys
    members = [name for path in (tmp_path / "out").glob("*.tar") for name in names_in(path)]
    assert len(members) == 12 and {name.rpartition(".")[2] for name in members} == {"jpg"}
    assert shards(*command)[0] == 0, "the same command again"
    assert shards("index", tmp_path / "out")[1] == [said[-1]]
    assert shards("verify", tmp_path / "out") == (0, [f"{tmp_path}/out: 12 images, all sound"], [])
    first = (tmp_path / "out").glob("*.tar")
    assert shards("make", "wds", *first, tmp_path / "remade", "--workers", 1)[1][-1].endswith(
        "in 1 tars, without labels"
    )


def test_a_folder_without_images_and_an_out_inside_are_refused(shards, tmp_path):
    (tmp_path / "empty/deep").mkdir(parents=True)
    code, _, (line,) = shards("make", "images", tmp_path / "empty", tmp_path / "out")
    assert code == 2 and f"{tmp_path}/empty: no images here or below" in line
    code, _, (line,) = shards("make", "images", photos(tmp_path / "photos"), tmp_path / "photos/out")
    assert code == 2 and "lies inside" in line and "some of its images" in line


def test_labels_are_all_there_or_all_missing(shards, tmp_path):
    path = write_tar(tmp_path / "a.tar", *sample("a", 1), ("b.png", picture(1)))
    shard = scan(path)
    assert shard.labels.tolist() == [1] and [entry.key for entry in shard.bad_entries] == ["b"]
    unlabelled(tmp_path / "without"), labelled(tmp_path / "with", NAMES)
    code, _, (line,) = shards("make", "wds", tmp_path / "without", tmp_path / "with", tmp_path / "out")
    assert code == 2 and "some of the tars have labels and some have none" in line
    (tmp_path / "with/b.tar").write_bytes((tmp_path / "without/a.tar").read_bytes())
    said = shards("index", tmp_path / "with")[1]
    assert any("12 images have no label, so only pretraining can use them" in line for line in said)


def test_pretraining_alone_needs_no_labels(capsys, tmp_path):
    unlabelled(tmp_path / "photos"), labelled(tmp_path / "labelled", NAMES)

    def said_of(**data):
        data = {"train": "photos", "workers": 0} | data
        code, said, complaints = check(capsys, tmp_path, stages={"pretrain": PRETRAIN}, data=data)
        return said if code == 0 else complaints[0]

    off = "no k-NN accuracy of features is measured"
    said = said_of()
    assert "images 12 for training, labels are not read" in said
    assert said.count(off) == 1 and "data.probe" in said
    assert off not in said_of(probe="labelled")
    assert "data.probe photos: needs two images or more, all with labels" in said_of(probe="photos")
    assert "photos/a.tar with 12, such as '0' (has no label, though there are 5 classes" in said_of(classes=5)
    assert off in said_of(train="labelled"), "labels that are there are not counted on"
    assert off not in said_of(train="labelled", val="labelled", classes=5), "as before"


@pytest.mark.parametrize("missing", ["val", "classes"])
def test_what_reads_labels_asks_for_them(capsys, tmp_path, missing):
    labelled(tmp_path / "train", NAMES), labelled(tmp_path / "val", NAMES)
    code, _, (line,) = check(capsys, tmp_path, f"data.{missing}=null")
    assert code == 2 and f"data.{missing}: required by stages.train, which reads labels; add it" in line
    sections = {"stages": {"pretrain": PRETRAIN}, "log": {"routes": True}}
    code, _, (line,) = check(capsys, tmp_path, f"data.{missing}=null", **sections)
    assert code == 2 and f"data.{missing}: required by log.routes" in line


def test_training_on_labels_refuses_images_without(capsys, tmp_path):
    unlabelled(tmp_path / "train"), labelled(tmp_path / "val", NAMES)
    code, _, (line,) = check(capsys, tmp_path)
    assert code == 2 and "12 of 12 samples are bad" in line and "has no label" in line


def test_each_probe_image_is_classified_by_all_others(tmp_path):
    """Held against a sum over all pairs; an image that could vote for itself would always be right."""
    images = 23
    members = [[(f"{n}.png", picture(n)), (f"{n}.cls", f"{n * n % 3}".encode())] for n in range(images)]
    write_tar(tmp_path / "probe/a.tar", *itertools.chain(*members))
    index = make_index(tmp_path / "probe")
    data = Data(train=str(tmp_path / "probe"), workers=0)

    def forward(x: Tensor) -> Tensor:
        return x.flatten(1)[:, ::7]

    batches = evaluate.batches(index, data.model_copy(update={"classes": 3}), 8, 5)
    rows = [(forward(x)[n >= 0], y[n >= 0]) for x, y, n in batches]
    features = F.normalize(torch.cat([x for x, _ in rows]), dim=1).double().numpy()
    labels = torch.cat([y for _, y in rows]).numpy()
    hits = 0
    for n in range(images):
        similarity = features @ features[n]
        nearest = [other for other in np.argsort(-similarity) if other != n][:4]
        votes = np.zeros(3)
        for other in nearest:
            votes[labels[other]] += np.exp(similarity[other] / 0.07)
        hits += votes.argmax() == labels[n]
    assert 0 < hits < images
    assert evaluate.knn_accuracy(forward, index, None, data, 8, 5, 4) == hits / images


def test_a_bad_label_is_shown_as_none(tmp_path):
    data = Data(train=str(tmp_path), classes=3)
    unlabelled(tmp_path / "a")
    line = refusal(evaluate.sources.open_sources, data, Data(train=str(tmp_path / "a")).train)
    assert "(has no label, though there are 3 classes in data.classes; only pretraining does without both)" in line
