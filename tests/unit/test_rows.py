"""Rows of tokens: format 3 of index.json, what a loader makes of rows, and their order on any ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sparse_mlp_ds as sm
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.bad_samples import BadSampleError
from sparse_mlp_ds.data.cache import Cache
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.loader import ShardDataset, load
from sparse_mlp_ds.data.order import evaluation_batches, micro_batches
from sparse_mlp_ds.data.rows import Rows
from sparse_mlp_ds.data.text_format import SPECIAL, TextFormat
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import new_recipe
from tests.helpers import numbered_tars, text_sets
from tests.helpers.numbered_tars import order_of
from tests.helpers.remote import Server
from tests.helpers.tars import refusal

FORMAT = TextFormat(8, 300, "a" * 64, {name: number for number, name in enumerate(SPECIAL)}, "documents")
SHARD = {
    "file": "a.tar", "bytes": 10**6, "sha256": "b" * 64, "row_bytes": 16, "blocks": [["k0", 512, 3], ["k1", 2048, 2]],
    "labels": [], "defects": [],
}  # fmt: skip
RECORD = {"format": 3, "text": FORMAT.record(), "classes": [], "shards": [SHARD]}


def test_blocks_become_the_columns_of_rows_and_blocks_again():
    index = index_file.parse(json.dumps(RECORD), "/data")
    (shard,) = index.shards
    assert index.text == FORMAT
    assert shard.offsets.tolist() == [512, 528, 544, 2048, 2064] and set(shard.sizes.tolist()) == {16}
    assert shard.labels.tolist() == [-1] * 5
    assert [shard.key(n) for n in range(5)] == ["k0:0", "k0:1", "k0:2", "k1:0", "k1:1"]
    written = json.loads(index.as_json())
    assert written["format"] == 3 and written["shards"][0]["blocks"] == SHARD["blocks"]
    assert "keys" not in written["shards"][0]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"row_bytes": 17}, "rows of different sizes"),
        ({"row_bytes": 0}, "impossible size"),
        ({"blocks": [["k", 0, 10**12]]}, "impossible size"),
        ({"blocks": [["k", -16, 1]]}, "impossible size"),
        ({"blocks": [["k", 10**6, 1]]}, "samples outside its 1000000 bytes"),
        ({"labels": [0]}, "lists of different lengths"),
        ({"blocks": None}, "not iterable"),
    ],
)
def test_damaged_blocks_are_refused_before_they_take_memory(changes, part):
    with pytest.raises(UserError, match="damaged") as error:
        index_file.parse(json.dumps(RECORD | {"shards": [SHARD | changes]}), "/data")
    assert part in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"length": 2},
        {"vocabulary": 5},
        {"tokenizer": "x"},
        {"packing": "sausages"},
        {"special": FORMAT.special | {"mask": 300}},
        {"special": FORMAT.special | {"mask": 0}},
        {"special": {}},
    ],
)
def test_a_damaged_format_is_refused(changes):
    with pytest.raises(UserError, match="damaged"):
        index_file.parse(json.dumps(RECORD | {"text": FORMAT.record() | changes}), "/data")


def test_images_keep_format_2():
    images = {"file": "a.tar", "bytes": 1000, "sha256": "b" * 64, "keys": ["x"], "offsets": [0], "sizes": [9]}
    record = {"format": 2, "classes": [], "shards": [images | {"labels": [0], "defects": []}]}
    index = index_file.parse(json.dumps(record), "/data")
    assert index.text is None
    assert json.loads(index.as_json())["format"] == 2 and "text" not in json.loads(index.as_json())
    with pytest.raises(UserError, match="damaged"):
        index_file.parse(json.dumps(record | {"shards": [SHARD]}), "/data")


def test_a_row_is_its_tokens_or_bad():
    decoder = Rows(FORMAT)
    tokens = np.array([2, 9, 10, 299, 0, 5, 6, 3])
    assert np.array_equal(decoder.decode(tokens.astype("<u2").tobytes()), tokens)
    assert decoder.decode(tokens.astype("<u2").tobytes()).dtype == np.int64
    tokens[3] = 300
    with pytest.raises(BadSampleError, match="token 300, outside the vocabulary of 300"):
        decoder.decode(tokens.astype("<u2").tobytes())
    with pytest.raises(BadSampleError, match="15 bytes"):
        decoder.decode(bytes(15))
    assert decoder.blank().tolist() == [0] * 8


def test_a_large_vocabulary_takes_four_bytes():
    assert TextFormat(8, 1 << 16, "a" * 64, FORMAT.special, "texts").dtype == np.dtype("<u2")
    assert TextFormat(8, (1 << 16) + 1, "a" * 64, FORMAT.special, "texts").row_bytes == 32


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    (index,) = text_sets.make(tmp_path_factory.mktemp("rows") / "made", text_sets.texts(23, classes=3))
    assert [len(shard) for shard in index.shards] == [8, 8, 7]
    return index


def stored(index):
    """All rows of a data set, read without the loader, [N, n]."""
    rows = []
    for shard in index.shards:
        content = open(shard.path, "rb").read()  # noqa: SIM115
        rows += [np.frombuffer(content[o : o + s], "<u2") for o, s in zip(shard.offsets, shard.sizes, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1), (3, 0), (4, 2), (6, 0)])
def test_every_rank_gets_its_rows_in_the_order_of_images(index, world, workers):
    order, rows, share = order_of(index, 12), stored(index), 12 // world
    data = ShardDataset(index, None, 3, seed=7, order=order)
    steps = range(3 * order.steps_per_epoch)
    ranks = [
        list(load(data, micro_batches(order, steps, range(r * share, (r + 1) * share)), workers)) for r in range(world)
    ]
    labels = np.concatenate([shard.labels for shard in index.shards])
    for step in steps:
        expected = order.batch_indices(step, 0, 12)
        batches = [batches[step] for batches in ranks]
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), rows[expected.samples])
        assert torch.cat([batch.labels for batch in batches]).tolist() == labels[expected.samples].tolist()
        assert torch.cat([batch.numbers for batch in batches]).tolist() == expected.numbers.tolist()


def test_evaluation_reads_every_row_once(index):
    batches = list(load(ShardDataset(index, None, None), evaluation_batches(len(index), 0, 1, 10), 0))
    found = {int(n): row for b in batches for n, row in zip(b.numbers, b.inputs, strict=True) if n >= 0}
    assert torch.equal(torch.stack([found[n] for n in range(23)]), stored(index))


def test_a_bad_row_is_replaced_in_training_and_masked_in_evaluation(tmp_path):
    (index,) = text_sets.make(tmp_path / "made", text_sets.texts(8))
    shard = index.shards[0]
    with open(shard.path, "r+b") as tar:
        tar.seek(int(shard.offsets[3]) + 4)
        tar.write((60_000).to_bytes(2, "little"))
    order = order_of(index, 8)
    (batch,) = load(ShardDataset(index, None, None, order=order), micro_batches(order, range(1), range(8)), 0)
    (bad,) = batch.bad_samples
    assert (bad.key, bad.reason) == (shard.key(3), "undecodable")
    assert "token 60000" in str(bad) and int(batch.inputs.max()) < text_sets.VOCABULARY
    (batch,) = load(ShardDataset(index, None, None), evaluation_batches(8, 0, 1, 8), 0)
    assert batch.numbers.tolist() == [0, 1, 2, -1, 4, 5, 6, 7]
    assert batch.inputs[3].tolist() == [index.text.special["pad"]] * text_sets.LENGTH


def test_remote_tars_of_rows_are_read_through_the_cache(index, tmp_path):
    folder = Path(index.source)
    with Server(folder) as server:
        place = {"path": f"{server.url}", "index": str(folder / "index.json")}
        data = Data(train=[place], cache={"folder": tmp_path / "cache", "gigabytes": 1})
        (remote,) = sources.open_sources(data, data.train)
        assert remote.text == index.text
        cache = Cache(tmp_path / "cache", 10**9)
        (batch,) = load(ShardDataset(remote, None, 3, cache=cache), evaluation_batches(23, 0, 1, 23), 0)
    assert torch.equal(batch.inputs, stored(index)) and not batch.bad_samples


def test_only_rows_that_mean_the_same_are_mixed(index, tmp_path):
    more = text_sets.texts(9)
    (same,) = text_sets.make(tmp_path / "same", more, tokenizer=f"{index.source}/tokenizer.model")
    (long,) = text_sets.make(tmp_path / "long", more, tokenizer=f"{index.source}/tokenizer.model", length=24)
    (other,) = text_sets.make(tmp_path / "other", more)

    def mixed(*folders):
        data = Data(train=[str(folder) for folder in folders])
        return index_file.join(sources.open_sources(data, data.train))

    assert len(mixed(index.source, same.source)) == 32 and mixed(index.source, same.source).text == index.text
    with pytest.raises(UserError, match="different length.* same --length N"):
        mixed(index.source, long.source)
    with pytest.raises(UserError, match="different tokenizer.* same --tokenizer FILE"):
        mixed(index.source, other.source)
    with pytest.raises(UserError, match="holds images, .* rows of tokens; use one kind"):
        mixed(index.source, numbered_tars.write(tmp_path / "images", numbered_tars.numbered([3])).source)


def test_rows_by_their_number_for_any_training_loop(index):
    data = sm.Shards(index.source)
    rows, labels = stored(index), np.concatenate([shard.labels for shard in index.shards])
    assert len(data) == 23 and data.classes == ["class 0", "class 1", "class 2"]
    for number in (0, 9, -1):
        tokens, label = data[number]
        assert torch.equal(tokens, rows[number]) and tokens.dtype == torch.int64 and label == labels[number]
    assert sm.Shards(index.source, transform=len)[3][0] == text_sets.LENGTH


def test_a_recipe_for_images_is_not_written_for_rows(tmp_path):
    text_sets.make(tmp_path / "made", text_sets.texts(20), text_sets.texts(5, first=20))
    line = refusal(new_recipe.write, tmp_path / "made", "mixer_s16", tmp_path / "new.yaml", False)
    assert line == f"{tmp_path}/made/train: holds rows of tokens; this needs images"
    assert not (tmp_path / "new.yaml").exists()
