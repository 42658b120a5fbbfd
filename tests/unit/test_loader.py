"""The loader: exactly the order's samples, from any number of processes; bad ones are replaced, counted, limited."""

import io
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparse_mlp_ds.data.bad_samples import BadSampleCounter
from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.loader import load
from sparse_mlp_ds.data.order import evaluation_batches, micro_batches
from sparse_mlp_ds.errors import UserError
from tests.helpers.numbered_tars import CLASSES, SIZE, WHOLE, dataset, numbered, order_of, png, values, write


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write(tmp_path_factory.mktemp("uneven"), numbered([5, 17, 1]))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_few_uneven_tars_over_many_ranks_and_workers(index, world, workers):
    order = order_of(index, 12)
    share, steps = 12 // world, range(3 * order.steps_per_epoch)
    ranks = [
        list(load(dataset(index, order), micro_batches(order, steps, range(rank * share, (rank + 1) * share)), workers))
        for rank in range(world)
    ]
    assert {len(batches) for batches in ranks} == {len(steps)}
    loaded = [values([batches[step] for batches in ranks]) for step in steps]
    assert loaded == [order.batch_indices(step, 0, 12).samples.tolist() for step in steps]
    labels = [label for batches in ranks for batch in batches for label in batch.labels.tolist()]
    assert labels == [value % CLASSES for value in values(b for batches in ranks for b in batches)]


@settings(max_examples=25, deadline=None, database=None)
@given(
    stop=st.integers(0, 9),
    before=st.sampled_from([(1, 0, 12), (2, 1, 6), (3, 0, 4), (2, 0, 3)]),
    after=st.sampled_from([(1, 1, 12), (2, 0, 6), (4, 0, 3), (1, 0, 4), (3, 0, 2)]),
    window=st.integers(0, 2),
    pad=st.booleans(),
)
def test_a_stop_anywhere_resumes_on_other_ranks_workers_and_micro_batches(index, stop, before, after, window, pad):
    order = order_of(index, 12, window=window, pad=pad)

    def run(steps, world, workers, micro):
        turns = 12 // (world * micro)
        ranks = [
            list(
                load(
                    dataset(index, order),
                    micro_batches(order, steps, range(rank * micro, (rank + 1) * micro), turns),
                    workers,
                )
            )
            for rank in range(world)
        ]
        return [value for turn in zip(*ranks, strict=True) for value in values(turn)]

    whole = [sample for step in range(10) for sample in order.batch_indices(step, 0, 12).samples.tolist()]
    assert run(range(stop), *before) + run(range(stop, 10), *after) == whole


def test_crops_belong_to_the_sample_and_not_to_the_rank(tmp_path):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(buffer, "png")
    index = write(tmp_path, [[("1", buffer.getvalue())] * 8])
    order = order_of(index, 8)
    data = dataset(index, order, (View(), View()))
    (whole,) = load(data, micro_batches(order, range(1), range(8)), 0)
    parts = [next(load(data, micro_batches(order, range(1), range(2 * rank, 2 * rank + 2)), 0)) for rank in range(4)]
    assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
    assert whole.inputs.shape == (8, 2, 3, SIZE, SIZE)
    assert len({image.numpy().tobytes() for views in whole.inputs for image in views}) == 16


def test_each_view_is_scaled_as_it_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    index = write(tmp_path, [[("1", buffer.getvalue())]])
    order, views = order_of(index, 1), [View(**dict(WHOLE) | {"interpolation": n}) for n in ("bicubic", "bilinear")]
    (batch,) = load(dataset(index, order, views), micro_batches(order, range(1), range(1)), 0)
    for square, resampling in zip(batch.inputs[0], (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR), strict=True):
        expected = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), resampling)).transpose(2, 0, 1)
        assert np.array_equal(square.numpy(), expected)


# ---- bad samples


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """40 samples of which 4 are bad in different ways."""
    tars = numbered([20, 20])
    tars[0][3] = ("3", b"no image")
    tars[0][4] = ("4", png(4)[:-30])
    tars[1][0] = ("99", png(20))  # outside the classes
    tars[1][5] = ("5", b"")  # named when it is indexed, and in no order
    return write(tmp_path_factory.mktemp("damaged"), tars)


BAD = {3, 4, 20}  # numbers in the index, behind the one that it left out from 25 on


def grey(sample):
    """The grey value of a sample of `damaged`, by its number in the index."""
    return sample if sample < 25 else sample + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_sample_stands_in_for_a_bad_one(damaged, workers):
    assert [(d.key, d.reason) for s in damaged.shards for d in s.bad_entries] == [("0025", "empty image")]
    order = order_of(damaged, 13)
    epoch = [sample for step in range(3) for sample in order.batch_indices(step, 0, 13).samples.tolist()]
    batches = list(load(dataset(damaged, order), micro_batches(order, range(3), range(13)), workers))
    expected = []
    for place in range(39):
        sample = next(epoch[(place + d) % 39] for d in range(39) if epoch[(place + d) % 39] not in BAD)
        expected.append(grey(sample))
    assert values(batches) == expected
    found = sorted((bad.key, bad.reason) for batch in batches for bad in batch.bad_samples)
    assert found == [("0003", "undecodable"), ("0004", "undecodable"), ("0020", "label")]
    assert [number for batch in batches for number in batch.numbers.tolist()] == list(range(39))


def test_in_evaluation_a_bad_sample_is_masked(damaged):
    batches = list(load(dataset(damaged), evaluation_batches(39, 0, 1, 16), 0))
    numbers = [number for batch in batches for number in batch.numbers.tolist()]
    assert sorted(n for n in numbers if n >= 0) == sorted(set(range(39)) - BAD)
    assert sum(len(batch.bad_samples) for batch in batches) == 3


def test_a_tar_that_shrank_since_it_was_indexed_costs_its_lost_samples_alone(tmp_path):
    index = write(tmp_path, numbered([6, 6]))
    tar = Path(index.shards[1].path)
    os.truncate(tar, int(index.shards[1].offsets[4]) + 1)
    order = order_of(index, 12)
    (batch,) = load(dataset(index, order), micro_batches(order, range(1), range(12)), 0)
    assert sorted(bad.key for bad in batch.bad_samples) == ["0010", "0011"]
    assert {bad.reason for bad in batch.bad_samples} == {"read"}
    assert not set(values([batch])) & {10, 11}


def test_a_data_set_without_a_good_sample_ends_in_one_line(tmp_path):
    index = write(tmp_path, [[("0", b"no image")] * 3])
    order = order_of(index, 3)
    with pytest.raises(UserError, match=r"some-000000\.tar: .* cannot be used.*remake it"):
        next(load(dataset(index, order), micro_batches(order, range(1), range(3)), 0))


@pytest.mark.parametrize("limit, stops", [(3 / 39, False), (2 / 39, True)])
def test_the_limit_names_the_worst_tar(damaged, limit, stops):
    order = order_of(damaged, 13)
    count = BadSampleCounter(limit, order.samples)
    for batch in load(dataset(damaged, order), micro_batches(order, range(3), range(13)), 0):
        count.add(batch.bad_samples, epoch=0)
    if stops:
        with pytest.raises(UserError, match=r"3 of 39 samples are bad.*worst is .*some-000000\.tar with 2.*'000"):
            count.read()
    else:
        assert count.read() == {"bad/undecodable": 2, "bad/label": 1}
        count.add([], epoch=1)
        assert count.read() == {"bad/undecodable": 2, "bad/label": 1}, "counted through the stage"


def test_the_limit_holds_for_each_epoch_anew(damaged):
    order = order_of(damaged, 13)
    count = BadSampleCounter(3 / 39, order.samples)
    for step, batch in enumerate(load(dataset(damaged, order), micro_batches(order, range(9), range(13)), 0)):
        count.add(batch.bad_samples, epoch=step // 3)
    assert sum(count.read().values()) == 9


def test_what_was_found_is_kept_for_one_epoch_alone(damaged):
    """A long run meets the same bad samples in every epoch."""
    order = order_of(damaged, 13)
    count = BadSampleCounter(3 / 39, order.samples)
    for step, batch in enumerate(load(dataset(damaged, order), micro_batches(order, range(9), range(13)), 0)):
        count.add(batch.bad_samples, epoch=step // 3)
    assert len(count.in_epoch) == 3


# ---- memory and files


def test_memory_stays_flat_over_epochs(index):
    """The reading process neither keeps images nor files: 40 epochs hold no more than 4."""
    order = order_of(index, 4, pad=True)
    data = dataset(index, order)
    process, held = psutil.Process(), []
    for step, _ in enumerate(load(data, micro_batches(order, range(40 * order.steps_per_epoch), range(4)), 0)):
        if step in (4 * order.steps_per_epoch, 40 * order.steps_per_epoch - 1):
            held.append((process.memory_info().rss, process.num_fds()))
    (first, files), (last, files_later) = held
    assert last - first < 8 * 2**20
    assert files_later == files


def test_few_files_are_open_however_many_tars_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_mlp_ds.data.samples._OPEN_FILES", 3)
    index = write(tmp_path, numbered([1] * 12))
    order, before = order_of(index, 12), psutil.Process().num_fds()
    data = dataset(index, order)
    (batch,) = load(data, micro_batches(order, range(1), range(12)), 0)
    assert sorted(values([batch])) == list(range(12))
    assert psutil.Process().num_fds() - before == 3
