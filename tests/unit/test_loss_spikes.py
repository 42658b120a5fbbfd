"""Which losses count as spikes, whatever the steps at which somebody looks, and which batches a step then gets."""

import json
import math

import pytest
import torch

from sparse_mlp_ds.config.recipe import LossSpike
from sparse_mlp_ds.train.loss_spikes import LossSpikes
from sparse_mlp_ds.train.progress import Progress

SETTINGS = LossSpike(factor=2, window=5)
LOSSES = [2.0, 1.9, 1.8, 9.0, 1.7, 1.7, 1.6, 4.0, 1.5, math.nan, 1.5, 3.0, 2.9, 1.4, math.inf]
"""The fourth is within the first window; the twelfth and thirteenth are below twice the median before them."""


def _look(losses, every, stops=()):
    """Feed one loss per step as two micro-batches, look every so many steps, and start anew after the steps `stops`."""
    progress = Progress(stage="train")
    spikes, found = LossSpikes(SETTINGS, progress), []
    for number, loss in enumerate(losses, 1):
        spikes.begin_step()
        spikes.add(torch.tensor(loss - 0.5), 3)
        spikes.add(torch.tensor(loss + 0.5), 3)
        progress.stage_step = number
        if number % every == 0:
            found += spikes.find()
        if number in stops:
            spikes.read()
            progress = Progress(**json.loads(json.dumps(vars(progress), allow_nan=False)))
            assert progress.has_losses()
            spikes = LossSpikes(SETTINGS, progress)
    return found


def test_a_loss_far_above_the_median_before_it_and_one_that_is_no_number():
    found = _look(LOSSES, 1)
    assert [spike.step for spike in found] == [8, 10, 15]
    assert [spike.median for spike in found] == pytest.approx([1.7, 1.7, 2.2])
    assert found[0].loss == pytest.approx(4.0) and math.isnan(found[1].loss) and math.isnan(found[2].loss)


@pytest.mark.parametrize("every", [3, 5, 15])
@pytest.mark.parametrize("stops", [(), (7,), (4, 8, 9, 13)])
def test_they_are_the_same_whenever_somebody_looks_and_after_every_restart(every, stops):
    assert str(_look(LOSSES, every, stops)) == str(_look(LOSSES, 1))


def test_losses_that_do_not_reach_up_to_the_step_are_forgotten():
    """The stage went on for a while without looking."""
    progress = Progress(stage="train", stage_step=9, losses={"step": 7, "values": [1.0] * 5, "unjudged": 0})
    LossSpikes(SETTINGS, progress)
    assert progress.losses == {"step": 9, "values": [], "unjudged": 0}


def test_without_the_key_nothing_is_kept():
    progress = Progress(stage="train", losses={"step": 0, "values": [1.0], "unjudged": 0})
    spikes = LossSpikes(None, progress)
    spikes.begin_step()
    spikes.add(torch.tensor(1.0), 3)
    assert spikes.find() == [] and progress.losses == {}


def test_steps_after_a_stretch_that_was_passed_over_get_later_batches():
    progress = Progress(passed_over=[[4, 3], [8, 2]])
    assert [progress.data_step(step) for step in (0, 3, 4, 7, 8, 9)] == [0, 3, 7, 10, 13, 14]


@pytest.mark.parametrize(
    "changes",
    [{"passed_over": 3}, {"passed_over": [[1]]}, {"passed_over": [[1, -1]]}, {"losses": []},
     {"losses": {"step": 1, "values": ["x"], "unjudged": 0}}, {"losses": {"step": 1, "values": [], "unjudged": 2}}],
)  # fmt: skip
def test_what_a_damaged_manifest_says_is_refused(changes):
    assert not Progress(**changes).has_losses()
