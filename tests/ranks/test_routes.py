"""What experts do with 17 images: the same on any number of ranks, wherever the experts lie."""

from dataclasses import replace

import pytest

from sparse_mlp_ds.config.recipe import Data
from sparse_mlp_ds.data.index import load
from sparse_mlp_ds.routes.collect import Images, collect
from sparse_mlp_ds.shards import digits, writer
from sparse_mlp_ds.train.evaluate import batches
from tests.helpers import harness, tiny

IMAGES = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("seventeen")
    held_out = digits._splits(path / "raw")[0]
    split = replace(held_out, images=held_out.images[:IMAGES])
    writer.write(path, "some", split, writer.Options(per_shard=5), 0, writer.Node(), lambda done, total: None)
    return path


def _collect(folder, ep_size: int):
    index = load(folder)
    data = Data(train=str(folder), val=str(folder), classes=10, workers=0)
    found = []
    for family in ("sparse_mlp", "vmoe"):
        spec, model = tiny.spec(family=family), tiny.model(ep_size, family=family)
        seen = batches(index, data, spec.image_size, 6)
        record = collect(model, spec, Images(index, data, index.classes), seen, "tiny")
        found.append(None if record is None else record.model_dump())
    return found


def _split(value, exact, rounded, path=""):
    """Sort the leaves of a record into whole numbers and texts, and numbers that depend on the order of sums."""
    if isinstance(value, dict):
        for key, one in value.items():
            _split(one, exact, rounded, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for key, one in enumerate(value):
            _split(one, exact, rounded, f"{path}.{key}")
    else:
        (rounded if isinstance(value, float) else exact)[path] = value


@pytest.mark.parametrize("world, ep_size", [(2, 2), (3, 1), (4, 2)])
def test_on_any_number_of_ranks(folder, world, ep_size):
    expected = harness.run(1, _collect, folder, 1)[0]
    found = harness.run(world, _collect, folder, ep_size)
    assert all(record is None for rank in found[1:] for record in rank)
    for one, other in zip(expected, found[0], strict=True):
        assert one["images"] == IMAGES and sum(map(sum, one["layers"][0]["by_class"])) > 0
        (exact, rounded), (exact_there, rounded_there) = ({}, {}), ({}, {})
        _split(one, exact, rounded)
        _split(other, exact_there, rounded_there)
        assert exact == exact_there
        assert rounded == pytest.approx(rounded_there, rel=2e-3, abs=2e-4)
