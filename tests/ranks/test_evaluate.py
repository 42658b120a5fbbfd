"""Exact evaluation: each of 17 images counts once, however they are split."""

import pytest
import torch

from sparse_mlp_ds.data import digits, shards
from sparse_mlp_ds.data.index import load
from sparse_mlp_ds.recipe import Data
from sparse_mlp_ds.train.evaluate import knn_accuracy, top_k_accuracy
from tests.ranks import harness

IMAGES = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("seventeen")
    shards.write(path, "some", digits._samples()[:IMAGES], digits.CLASSES, per_shard=5)
    return path


def _evaluate(folder, batch_size: int):
    index = load(folder)
    data = Data(train=folder, val=folder, classes=10, workers=0)
    torch.manual_seed(0)
    weights = torch.randn(3 * 16 * 16, 10)
    forward = lambda images: images.flatten(1) @ weights  # noqa: E731
    counts = top_k_accuracy(forward, index, data, 16, batch_size)
    return counts, knn_accuracy(forward, index, index, data, 16, batch_size, k=1)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_image_counts_once(folder, world, batch_size):
    expected = harness.run(1, _evaluate, folder, IMAGES)[0]
    assert expected[0]["images"] == IMAGES
    assert 0 < expected[0]["top5"] < 1
    assert expected[1] == 1.0, "with k = 1 every image is its own nearest neighbour"
    assert harness.run(world, _evaluate, folder, batch_size) == [expected] * world
