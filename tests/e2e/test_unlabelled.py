"""Pretraining on a folder of photos without labels, from the command that makes shards of them to an export."""

import json

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.shards import digits
from tests.helpers import records
from tests.helpers.launcher import MOE, Launch

pytestmark = pytest.mark.timeout(600)
RECIPE = """
name: photos
data: {train: photos, workers: 1}
model: {name: sparse_mlp_digits}
stages:
  pretrain:
    kind: pretrain
    epochs: 2
    batch_size: 64
    optimizer: {base_lr: 1.0e-3}
    hidden: 32
    dim: 16
    knn_every_epochs: 1
    views: [{crop_scale: [0.5, 1.0]}, {crop_scale: [0.5, 1.0]}]
log: {every_steps: 2}
checkpoint: {every_steps: 3}
"""
SIGNS = {f"collapse/{sign}" for sign in ("feature_std", "effective_rank", "positive_similarity", "negative_similarity")}


def test_photos_without_labels_are_pretrained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(load_digits().images[:200]):
        path = tmp_path / f"album/{number % 3}" / ("deep" if number % 2 else "") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((16, 16)).save(path)
    cli.main(["shards", "make", "images", "album", "photos", "--workers", "1"])
    assert "200 images in 1 tars, without labels" in capsys.readouterr().out
    (tmp_path / "photos.yaml").write_text(RECIPE)
    with Launch(tmp_path, "--ds_config", MOE, "--recipe", "photos.yaml", "--set", "train.max_steps=4") as launch:
        assert launch.wait() == 0, launch.output()
        assert launch.output().count("no k-NN accuracy of features is measured") == 1
    run = tmp_path / "runs/photos"
    found = records.of_steps(run)
    assert [record["step"] for record in found] == [1, 2, 4]
    for record in found:
        assert record.keys() >= SIGNS and not any("knn" in key for key in record)
        assert 0 < record["collapse/feature_std"] < 1 and 1 < record["collapse/effective_rank"] <= 16
        assert all(-1 <= record[f"collapse/{kind}_similarity"] <= 1 for kind in ("positive", "negative"))
    (stage,) = json.loads((run / "summary.json").read_text())["stages"]
    assert stage["metrics"] == {}
    page = (run / "report.html").read_text()
    assert "Spread of features" in page and "Cosine of queries and keys" in page
    cli.main(["export", "runs/photos", "out"])
    assert json.loads((tmp_path / "out/config.json").read_text())["classes"] == []

    digits.make(tmp_path / "digits")  # labelled images may come later: no weight depends on them
    with Launch(tmp_path, "--ds_config", MOE, "--recipe", "photos.yaml", "--set", "data.probe=digits/val") as launch:
        assert launch.wait() == 0, launch.output()
        assert "no k-NN accuracy" not in launch.output()
    (stage,) = json.loads((run / "summary.json").read_text())["stages"]
    assert stage["steps"] == 6 and 0.2 < stage["metrics"]["knn_top1"] <= 1
