"""The data order: the same images in the same sequence on any number of ranks, after any stop, in any interpreter."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_mlp_ds.data import order as order_module
from sparse_mlp_ds.data.order import Part, TrainingOrder, evaluation_batches, micro_batches, samples_per_epoch


def simple(samples, batch_size, seed, **options):
    """One data set in one tar."""
    return TrainingOrder((Part((samples,), samples),), batch_size, seed, **options)


ORDER = simple(103, 24, 3)


def pairs(slots):
    """[(sample, number)] of one micro-batch."""
    return list(zip(slots.samples.tolist(), slots.numbers.tolist(), strict=True))


def by_rank(steps, world, accumulation, order=ORDER):
    """Each rank's list of micro-batches."""
    micro = order.batch_size // (world * accumulation)
    ranks = (
        micro_batches(order, steps, range(rank * micro, (rank + 1) * micro), accumulation) for rank in range(world)
    )
    return [[pairs(slots) for slots in rank] for rank in ranks]


def global_batches(steps, world, accumulation, order=ORDER):
    """Each step's (sample, number) pairs over all ranks, in the order of the global batch."""
    ranks = by_rank(steps, world, accumulation, order)
    turns = [[pair for rank in ranks for pair in rank[turn]] for turn in range(len(ranks[0]))]
    starts = range(0, len(turns), accumulation)
    return [[pair for turn in turns[first : first + accumulation] for pair in turn] for first in starts]


def epoch(order, number):
    """The samples of one epoch, in order."""
    steps = range(number * order.steps_per_epoch, (number + 1) * order.steps_per_epoch)
    return [sample for batch in global_batches(steps, 1, 1, order) for sample, _ in batch]


def test_steps_of_an_epoch():
    assert (ORDER.steps_per_epoch, ORDER.left_out) == (4, 7)
    assert (simple(96, 24, 0).steps_per_epoch, simple(96, 24, 0).left_out) == (4, 0)
    assert (simple(103, 24, 0, pad=True).steps_per_epoch, simple(103, 24, 0, pad=True).left_out) == (5, -17)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_topology_loads_the_same_global_batches(world, accumulation):
    steps = range(2, 11)  # over epochs 0, 1 and 2
    alone = global_batches(steps, 1, 1)
    assert [len(batch) for batch in alone] == [24] * 9
    assert global_batches(steps, world, accumulation) == alone


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_micro_batch_is_a_run_of_neighbours(world, accumulation):
    """Routing groups of any size that divides the micro-batch are then the same on every topology."""
    micro = 24 // (world * accumulation)
    batches = [batch for rank in by_rank(range(3), world, accumulation) for batch in rank]
    assert len(batches) == 3 * world * accumulation
    for batch in batches:
        first = batch[0][1]
        assert [number for _, number in batch] == list(range(first, first + micro))


def test_an_epoch_visits_a_sample_once_at_most_and_the_next_in_another_order():
    epochs = [epoch(ORDER, e) for e in range(3)]
    for samples in epochs:
        assert len(set(samples)) == len(samples) == 96
        assert set(samples) <= set(range(103))
    assert len({tuple(samples) for samples in epochs}) == 3
    assert len({frozenset(samples) for samples in epochs}) > 1, "always the same images are left out"


def test_a_padded_epoch_visits_every_sample_and_fills_up_from_its_beginning():
    order = simple(103, 24, 3, pad=True)
    first, second = epoch(order, 0), epoch(order, 1)
    assert len(first) == 120
    assert set(first[:103]) == set(range(103))
    assert first[103:] == first[:17]
    assert second[:103] != first[:103]
    numbers = [n for batch in global_batches(range(10), 1, 1, order) for _, n in batch]
    assert numbers == list(range(240)), "a sample that fills up draws anew"


def test_numbers_never_repeat_and_name_the_place_in_the_stage():
    numbers = [number for batch in global_batches(range(12), 2, 1) for _, number in batch]
    assert len(set(numbers)) == len(numbers)
    assert numbers[:3] == [0, 1, 2]
    assert numbers[96] == 103  # epoch 1 begins at its own length, whatever the batch size


@pytest.mark.parametrize("other", [simple(103, 24, 4), simple(104, 24, 3)], ids=["seed", "samples"])
def test_another_seed_or_data_set_gives_another_order(other):
    assert pairs(ORDER.batch_indices(0, 0, 24)) != pairs(other.batch_indices(0, 0, 24))


def test_the_batch_size_does_not_change_an_epochs_sequence():
    larger = simple(103, 48, 3)
    assert pairs(larger.batch_indices(1, 0, 48)) == pairs(ORDER.batch_indices(2, 0, 24)) + pairs(
        ORDER.batch_indices(3, 0, 24)
    )


# ---- windows and mixtures


def test_a_window_mixes_its_tars_and_reads_them_before_the_next_ones():
    shards = (10,) * 12
    order = TrainingOrder((Part(shards, 120),), 30, 5, window=3)
    for number in range(2):
        samples = np.array(epoch(order, number))
        assert sorted(samples) == list(range(120))
        windows = [set((part // 10).tolist()) for part in samples.reshape(4, 30)]
        assert [len(tars) for tars in windows] == [3] * 4
        assert set().union(*windows) == set(range(12))
        assert any((np.diff(part // 10) != 0).sum() > 10 for part in samples.reshape(4, 30)), "tars come one by one"
    assert epoch(order, 0) != epoch(order, 1)


@pytest.mark.parametrize(
    ("samples", "weights", "expected"),
    [
        ([30, 10], None, [30, 10]),
        ([30, 10], [1, 1], [20, 20]),
        ([30, 11], [1, 1], [21, 20]),
        ([100, 1, 1], [1, 1, 2], [26, 25, 51]),
    ],
)
def test_shares_follow_the_weights_and_fill_the_epoch(samples, weights, expected):
    assert sorted(samples_per_epoch(samples, weights)) == sorted(expected)
    assert sum(samples_per_epoch(samples, weights)) == sum(samples)


def test_a_mixture_without_weights_visits_everything_once():
    order = TrainingOrder((Part((7, 8), 15), Part((9,), 9)), 6, 1)
    assert sorted(epoch(order, 0)) == sorted(epoch(order, 1)) == list(range(24))
    assert len({sample >= 15 for sample in epoch(order, 0)[:12]}) == 2, "the sets are not mixed"


def test_a_weighted_mixture_keeps_its_shares_and_repeats_nothing_before_its_time():
    order = TrainingOrder((Part((40,), 20), Part((10,), 30)), 10, 1)
    stream = [sample for e in range(4) for sample in epoch(order, e)]
    for e in range(4):
        assert sum(sample >= 40 for sample in epoch(order, e)) == 30
    first, second = ([s for s in stream if (s >= 40) == side] for side in (False, True))
    assert sorted(first[:40]) == sorted(first[40:]) == list(range(40))
    assert all(sorted(second[at : at + 10]) == list(range(40, 50)) for at in range(0, 120, 10))


# ---- stopping and resuming


@settings(max_examples=80, deadline=None, database=None)
@given(
    shards=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    window=st.integers(0, 3),
    pad=st.booleans(),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 4),
    other=st.integers(1, 4),
    stop=st.integers(0, 30),
    seed=st.integers(0, 2**63),
)
def test_a_resumed_run_loads_what_was_left(shards, window, pad, micro, accumulation, world, other, stop, seed):
    total = micro * accumulation * world * other  # divides over both numbers of ranks
    assume(total <= sum(shards))
    order = TrainingOrder((Part(tuple(shards), sum(shards)),), total, seed, window, pad)
    uninterrupted = global_batches(range(31), world, accumulation, order)
    before = global_batches(range(stop), world, accumulation, order) if stop else []
    assert before + global_batches(range(stop, 31), other, accumulation, order) == uninterrupted


def test_a_stand_in_is_the_next_sample_of_the_same_epoch():
    samples = [sample for sample, _ in pairs(ORDER.batch_indices(1, 0, 24))]
    assert [ORDER.following(24, distance) for distance in range(24)] == samples
    last = pairs(ORDER.batch_indices(3, 0, 24))[-1][1]
    assert (
        ORDER.following(last, 8) == pairs(ORDER.batch_indices(0, 0, 1))[0][0]
    )  # 7 are left out behind it; then from the start


PRINT_ORDER = """
import json
from sparse_mlp_ds.data.order import Part, TrainingOrder
slots = TrainingOrder((Part((53, 50), 103), Part((20,), 30)), 24, 3, window=1).batch_indices(5, 2, 20)
print(json.dumps([slots.samples.tolist(), slots.numbers.tolist()]))
"""


def test_a_new_interpreter_gives_the_same_order():
    package = Path(order_module.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(package)}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_ORDER], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    here = TrainingOrder((Part((53, 50), 103), Part((20,), 30)), 24, 3, window=1).batch_indices(5, 2, 20)
    assert json.loads(there.stdout) == [here.samples.tolist(), here.numbers.tolist()]


def test_the_order_of_a_seed_is_this_one():
    """Numbers written down once: a checkpoint resumes its data order under any later version."""
    assert simple(10, 5, 0).batch_indices(0, 0, 5).samples.tolist() == [0, 2, 9, 1, 8]


# ---- evaluation


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [1, 3, 17])
def test_evaluation_sees_every_sample_once(samples, world, batch):
    ranks = [[pairs(s) for s in evaluation_batches(samples, rank, world, batch)] for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {len(b) for batches in ranks for b in batches} == {batch}
    items = [pair for batches in ranks for b in batches for pair in b]
    assert Counter(sample for sample, number in items if number >= 0) == Counter(range(samples))
    assert all(pair == (0, -1) or pair[0] == pair[1] for pair in items)
    assert len(items) < samples + world * batch  # no batch is padding on every rank
