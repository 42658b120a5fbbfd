"""Training on a part of the labels: which samples a stage gets, and that its order, batches, plan and refusals know."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sparse_mlp_ds.data.few_labels import labelled_part
from sparse_mlp_ds.data.index import Index, Shard, join
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.train.plan import plan
from sparse_mlp_ds.train.stage_batches import load_batches
from tests.helpers.launcher import MOE

COUNTS = {-1: 30, 0: 101, 1: 40, 2: 3}


@pytest.fixture(scope="module")
def index():
    """Three tars with samples of three classes, and some without a label, in random places."""
    labels = np.random.default_rng(0).permutation(np.repeat(list(COUNTS), list(COUNTS.values())))
    shards, first = [], 0
    for count in (50, 0, 124):
        keys = np.array([str(number).encode() for number in range(first, first + count)], dtype="S8")
        places = np.arange(count)
        shards.append(Shard("a.tar", "a.tar", 0, "", keys, places, places, labels[first : first + count]))
        first += count
    return Index("somewhere", ["a", "b", "c"], shards)


def of_class(index):
    """Each kept sample's key and label."""
    return {shard.key(place): int(shard.labels[place]) for shard in index.shards for place in range(len(shard))}


@pytest.mark.parametrize(
    ("fraction", "counts"), [(1, (101, 40, 3)), (0.1, (10, 4, 1)), (0.5, (50, 20, 2)), (1e-9, (1, 1, 1))]
)
def test_every_class_keeps_its_share_and_at_least_one(index, fraction, counts):
    kept = of_class(labelled_part(index, fraction, 3))
    assert Counter(kept.values()) == dict(enumerate(counts))
    whole = of_class(index)
    assert all(whole[key] == label for key, label in kept.items())
    assert list(kept) == [key for key in whole if key in kept]  # in the order of the tars


def test_more_labels_contain_fewer(index):
    parts = [set(of_class(labelled_part(index, fraction, 3))) for fraction in (0.01, 0.1, 0.3, 0.9)]
    assert all(one < two for one, two in zip(parts, parts[1:], strict=False))


def test_the_seed_and_the_place_in_a_mixture_choose(index):
    chosen = [
        set(of_class(labelled_part(index, 0.1, seed, number))) for seed, number in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert chosen[0] == chosen[1] and chosen[0] != chosen[2] and chosen[0] != chosen[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_labels")
    digits.make(folder / "digits")
    return folder


def job_of(folder, *overrides):
    data = [f"data.{split}={folder}/digits/{split}" for split in ("train", "val")]
    return resolve("digits", MOE, [*data, *overrides], str(folder / "run"), "never", world=1)


def test_a_stage_goes_through_its_part_in_every_epoch_and_the_others_through_all(folder):
    job = job_of(folder, "stages.finetune.label_fraction=0.1")
    order, index = job.order("finetune"), join(job.trained_on["finetune"])
    wanted = Counter(int(label) for shard in job.train[0].shards for label in shard.labels)
    kept = Counter(int(label) for shard in index.shards for label in shard.labels)
    assert kept == {label: round(count / 10) for label, count in wanted.items()}
    assert order.samples == sum(kept.values()) and job.order("pretrain").samples == sum(wanted.values()) == 1437
    steps = order.steps_per_epoch
    epochs = [
        [sample for step in range(steps * epoch, steps * (epoch + 1))
         for sample in order.batch_indices(step, 0, order.batch_size).samples.tolist()]
        for epoch in (0, 1)
    ]  # fmt: skip
    assert all(len(set(epoch)) == len(epoch) == order.samples - order.left_out for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_plan_says_how_many_samples_a_stage_has(folder):
    stage = next(
        line for line in plan(job_of(folder, "stages.finetune.label_fraction=0.1")).splitlines() if "finetune" in line
    )
    assert "trained on 143 of the images" in stage
    assert "trained on" not in plan(job_of(folder))


def test_a_batch_beyond_the_part_is_refused(folder):
    with pytest.raises(
        UserError, match=r"batch_size 64 exceeds the 10 images of data.train that label_fraction leaves"
    ):
        job_of(folder, "stages.finetune.label_fraction=0.01")
    with pytest.raises(UserError, match="label_fraction"):
        job_of(folder, "stages.finetune.label_fraction=0")


def test_batches_are_read_from_the_part(folder):
    job = job_of(folder, "stages.finetune.label_fraction=0.1", "data.workers=0")
    order, index = job.order("finetune"), join(job.trained_on["finetune"])
    method = SimpleNamespace(views=job.recipe.stages["finetune"].crops)
    batches = list(load_batches(job, "finetune", range(4), method))
    wanted = [[index.label(int(sample)) for sample in order.batch_indices(step, 0, 64).samples] for step in range(4)]
    assert [batch.labels.tolist() for batch in batches] == wanted
