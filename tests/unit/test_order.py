"""The data order: the same images in the same sequence on any number of ranks, after any stop, in any interpreter."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparse_mlp_ds.data import order as order_module
from sparse_mlp_ds.data.order import Item, TrainingOrder, evaluation_batches, micro_batches

ORDER = TrainingOrder(samples=103, batch_size=24, seed=3)


def by_rank(steps, world, accumulation, order=ORDER):
    """Each rank's list of micro-batches."""
    micro = order.batch_size // (world * accumulation)
    return [list(micro_batches(order, steps, rank, world, micro, accumulation)) for rank in range(world)]


def global_batches(steps, world, accumulation, order=ORDER):
    """Each step's items over all ranks, in the order of the global batch."""
    ranks = by_rank(steps, world, accumulation, order)
    turns = [
        [item for rank in ranks for item in rank[turn]] for turn in range(len(ranks[0]))
    ]  # what all ranks load at the same time
    return [
        [item for turn in turns[first : first + accumulation] for item in turn]
        for first in range(0, len(turns), accumulation)
    ]


def test_steps_of_an_epoch():
    assert (ORDER.steps_per_epoch, ORDER.left_out) == (4, 7)
    assert (TrainingOrder(96, 24, 0).steps_per_epoch, TrainingOrder(96, 24, 0).left_out) == (4, 0)


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
        first = batch[0].number
        assert [item.number for item in batch] == list(range(first, first + micro))


def test_an_epoch_visits_a_sample_once_at_most_and_the_next_in_another_order():
    epochs = [[i for batch in global_batches(range(4 * e, 4 * e + 4), 1, 1) for i in batch] for e in range(3)]
    for epoch in epochs:
        samples = [item.sample for item in epoch]
        assert len(set(samples)) == len(samples) == 96
        assert set(samples) <= set(range(103))
    sequences = [tuple(item.sample for item in epoch) for epoch in epochs]
    assert len(set(sequences)) == 3
    assert len({frozenset(sequence) for sequence in sequences}) > 1, "always the same images are left out"


def test_numbers_never_repeat_and_name_the_place_in_the_stage():
    items = [item for batch in global_batches(range(12), 2, 1) for item in batch]
    assert len({item.number for item in items}) == len(items)
    assert [item.number for item in items[:3]] == [0, 1, 2]
    assert items[96].number == 103  # epoch 1 begins at its own length, whatever the batch size


@pytest.mark.parametrize("other", [TrainingOrder(103, 24, 4), TrainingOrder(104, 24, 3)], ids=["seed", "samples"])
def test_another_seed_or_data_set_gives_another_order(other):
    assert ORDER.items(0, 0, 24) != other.items(0, 0, 24)


def test_the_batch_size_does_not_change_an_epochs_sequence():
    larger = TrainingOrder(103, 48, 3)
    assert larger.items(1, 0, 48) == ORDER.items(2, 0, 24) + ORDER.items(3, 0, 24)


@settings(max_examples=60, deadline=None, database=None)
@given(
    samples=st.integers(8, 200),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    world=st.integers(1, 4),
    other=st.integers(1, 4),
    stop=st.integers(0, 30),
    seed=st.integers(0, 2**63),
)
def test_a_resumed_run_loads_what_was_left(samples, micro, accumulation, world, other, stop, seed):
    total = micro * accumulation * world * other  # divides over both numbers of ranks
    assume(total <= samples)
    order = TrainingOrder(samples, total, seed)
    uninterrupted = global_batches(range(31), world, accumulation, order)
    before = global_batches(range(stop), world, accumulation, order) if stop else []
    assert before + global_batches(range(stop, 31), other, accumulation, order) == uninterrupted


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [1, 3, 17])
def test_evaluation_sees_every_sample_once(samples, world, batch):
    ranks = [list(evaluation_batches(samples, rank, world, batch)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert {len(b) for batches in ranks for b in batches} == {batch}
    items = [item for batches in ranks for b in batches for item in b]
    assert Counter(item.sample for item in items if item.number >= 0) == Counter(range(samples))
    assert all(item == Item(0, -1) or item.number == item.sample for item in items)
    assert len(items) < samples + world * batch  # no batch is padding on every rank


PRINT_ORDER = """
import json
from sparse_mlp_ds.data.order import TrainingOrder
print(json.dumps([[i.sample, i.number] for i in TrainingOrder(103, 24, 3).items(5, 2, 20)]))
"""


def test_a_new_interpreter_gives_the_same_order():
    package = Path(order_module.__file__).parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(package)}
    there = subprocess.run(
        [sys.executable, "-c", PRINT_ORDER], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    here = [[item.sample, item.number] for item in ORDER.items(5, 2, 20)]
    assert len(here) == 20
    assert json.loads(there.stdout) == here
