"""Exact evaluation: each of 17 images counts once, however they are split."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from sparse_mlp_ds.config.recipe import Data
from sparse_mlp_ds.data.index import load
from sparse_mlp_ds.log.image_hits import LEFT_OUT, RIGHT
from sparse_mlp_ds.shards import digits, writer
from sparse_mlp_ds.train.evaluate import knn_accuracy, outcomes
from tests.helpers import harness

IMAGES = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("seventeen")
    digits_val = digits._splits(path / "raw")[0]
    split = replace(digits_val, images=digits_val.images[:IMAGES])
    writer.write(path, "some", split, writer.Options(per_shard=5), 0, writer.Node(), lambda done, total: None)
    return path


@pytest.fixture(scope="module")
def damaged(folder, tmp_path_factory):
    """The same with one image that does not decode, and a label outside the classes."""
    path = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder, path, dirs_exist_ok=True)
    record = json.loads((path / "index.json").read_text())
    record["shards"][1]["labels"][2] = 10
    with (path / record["shards"][2]["file"]).open("rb+") as file:
        file.seek(record["shards"][2]["offsets"][1])
        file.write(bytes(20))
    (path / "index.json").write_text(json.dumps(record))
    return path


def _evaluate(folder, batch_size: int):
    index = load(folder)
    data = Data(train=str(folder), val=str(folder), classes=10, workers=0, bad_limit=0.2)
    torch.manual_seed(0)
    weights = torch.randn(3 * 16 * 16, 10)
    forward = lambda images: images.flatten(1) @ weights  # noqa: E731
    outcome = outcomes(forward, index, data, 16, batch_size)[0]
    marks = outcome.marks.tolist()
    assert marks.count(RIGHT) / (len(marks) - marks.count(LEFT_OUT)) == outcome.metrics()["top1"]
    counts = outcome.metrics() | {"marks": marks}
    return counts, knn_accuracy(forward, index, index, data, 16, batch_size, k=1)


def _assert_same(found, expected):
    """Counts to the last image; the calibration error and the loss, sums of floating-point numbers, up to rounding."""
    (metrics, knn), (expected_metrics, expected_knn) = found, expected
    assert knn == expected_knn
    for name in ("ece", "loss"):
        assert metrics.pop(name) == pytest.approx(expected_metrics[name], rel=1e-4)
    assert metrics == {key: value for key, value in expected_metrics.items() if key not in ("ece", "loss")}


def _evaluate_in_batches(folder, batch_sizes: tuple[int, ...]):
    return [_evaluate(folder, size) for size in batch_sizes]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_image_counts_once(folder, world):
    expected = harness.run(1, _evaluate, folder, IMAGES)[0]
    assert expected[0]["images"] == IMAGES
    assert 0 < expected[0]["top5"] < 1
    assert expected[1] == 1.0, "with k = 1 every image is its own nearest neighbour"
    for rank in harness.run(world, _evaluate_in_batches, folder, (1, 3, 8)):
        for found in rank:
            _assert_same(found, expected)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_bad_images_are_left_out_on_any_number_of_ranks(damaged, world):
    expected = harness.run(1, _evaluate, damaged, IMAGES)[0]
    assert expected[0]["images"] == IMAGES - 2 and expected[0]["marks"].count(LEFT_OUT) == 2
    for found in harness.run(world, _evaluate, damaged, 3):
        _assert_same(found, expected)
