"""The batch plan: the recipe's batch size and the DeepSpeed JSON's batch keys multiply out over any number of ranks."""

import pytest

from sparse_mlp_ds.config.batch import BatchPlan, plan_batch
from sparse_mlp_ds.config.deepspeed_json import BATCH_KEYS, DeepSpeedJson
from sparse_mlp_ds.errors import UserError


def fixed(batch=None, micro=None, accumulation=None):
    keys = dict(zip(BATCH_KEYS, (batch, micro, accumulation), strict=True))
    return DeepSpeedJson({key: value for key, value in keys.items() if value is not None}, "my/ds.json")


BATCHES = [
    # what the JSON fixes, the recipe's batch size, ranks -> micro, accumulation
    (fixed(), 128, 1, 128, 1),
    (fixed(), 128, 4, 32, 1),
    (fixed(batch=128), 128, 4, 32, 1),
    (fixed(micro=8), 128, 4, 8, 4),
    (fixed(micro=8), 128, 1, 8, 16),
    (fixed(accumulation=2), 128, 4, 16, 2),
    (fixed(micro=16, accumulation=2), 128, 4, 16, 2),
    (fixed(128, 16, 2), 128, 4, 16, 2),
]


@pytest.mark.parametrize("config, total, world, micro, accumulation", BATCHES)
def test_batch(config, total, world, micro, accumulation):
    made = plan_batch(config, "my/r.yaml", "s", total, world)
    assert made == BatchPlan(total, micro, accumulation)
    assert made.micro * made.accumulation * world == total
    assert made.evaluation == 4 * made.micro * world, "what fits in training fits in evaluation"
    assert {made.weight(rank, world) for rank in range(world)} == {1.0}


UNEVEN = [
    # what the JSON fixes, the recipe's batch size, ranks, images that stay together -> images of each rank's turn
    (fixed(), 100, 3, 1, [33, 33, 34]),
    (fixed(), 4096, 24, 8, [168, 168, 176] * 8),
    (fixed(accumulation=2), 128, 3, 8, [16, 24, 24]),
]


@pytest.mark.parametrize("config, total, world, unit, images", UNEVEN)
def test_ranks_share_a_batch_that_does_not_divide(config, total, world, unit, images):
    made = plan_batch(config, "my/r.yaml", "s", total, world, unit)
    shares = [made.share(rank, world) for rank in range(world)]
    assert [len(share) for share in shares] == images and max(images) == made.micro
    assert [place for share in shares for place in share] == list(range(total // made.accumulation))
    weights = [made.weight(rank, world) for rank in range(world)]
    assert sum(weights) == pytest.approx(world)
    assert all(w / n == pytest.approx(weights[0] / images[0]) for w, n in zip(weights, images, strict=True))


def test_images_that_stay_together_are_not_parted_by_the_json():
    assert plan_batch(fixed(micro=16), "my/r.yaml", "s", 64, 2, unit=8) == BatchPlan(64, 16, 2, 8)
    with pytest.raises(UserError, match="gpu 12 in my/ds.json would separate 8 .* a multiple of 8"):
        plan_batch(fixed(micro=12), "my/r.yaml", "s", 48, 2, unit=8)


CONFLICTS = [
    # what the JSON fixes, the recipe's batch size, ranks -> what is said
    (fixed(batch=100), 128, 1, ["conflicts with train_batch_size 100", "remove train_batch_size there"]),
    (fixed(accumulation=3), 100, 3, ["does not divide over 3 ranks", "the nearest that does is 99"]),
    (fixed(), 2, 4, ["does not divide over 4 ranks", "the nearest that does is 4"]),
    (fixed(micro=48), 128, 1, ["train_micro_batch_size_per_gpu 48", "the nearest that does is 144"]),
    (fixed(micro=64), 128, 4, ["train_micro_batch_size_per_gpu 64", "the nearest that does is 256"]),
    (fixed(accumulation=3), 128, 2, ["gradient_accumulation_steps 3", "the nearest that does is 129"]),
]


@pytest.mark.parametrize("config, total, world, said", CONFLICTS)
def test_a_batch_that_does_not_multiply_out_names_both_files_and_the_nearest_that_does(config, total, world, said):
    with pytest.raises(UserError) as error:
        plan_batch(config, "my/r.yaml", "tune", total, world)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"my/r.yaml: stages.tune.batch_size {total} ")
    assert "my/ds.json" in line
    assert all(part in line for part in said), line
    if "nearest" in line:
        nearest = int(line.rsplit(" ", 1)[1])
        assert plan_batch(config, "my/r.yaml", "tune", nearest, world).total == nearest
