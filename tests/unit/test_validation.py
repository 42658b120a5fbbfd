"""When a stage is validated, which validation is the best, when the stage ends, and what recipes may ask for."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparse_mlp_ds.config import loading
from sparse_mlp_ds.config.stages import Finetune, Pretrain, View
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import evaluate
from sparse_mlp_ds.train.progress import Progress
from sparse_mlp_ds.train.validation import Validation

STAGE = {"kind": "finetune", "epochs": 2, "batch_size": 8, "optimizer": {"base_lr": 1.0}, "view": View()}


def stage(**changes):
    return Finetune.model_validate(STAGE | changes)


def validate(scores, progress=None, last=100, **changes):
    """Steps of a stage, each of which is validated; the scores are top-1 in percent. Returns both objects."""
    progress = progress or Progress(stage="finetune")
    validation = Validation(stage(val_every_epochs=0.1, **changes), 10, last, progress)
    for score in scores:
        progress.advance(0.0)
        assert validation.is_due()
        validation.take({"top1": score / 100, "loss": 1.0, "images": 7})
    return validation, progress


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, [10, 20, 25]), (0.25, [*range(2, 25, 2), 25]), (0.01, range(1, 26)), (9, [25])]
)
def test_fractions_of_epochs_are_whole_steps_and_the_end_is_validated(epochs, steps):
    progress = Progress(stage="finetune")
    validation = Validation(stage(val_every_epochs=epochs), 10, 25, progress)
    due = []
    for step in range(1, 26):
        progress.advance(0.0)
        due += [step] if validation.is_due() else []
    assert due == list(steps)


def test_a_stage_without_the_key_or_without_labels_is_not_validated():
    optimizer, views = {"base_lr": 1.0}, (View(), View())
    pretrain = Pretrain(kind="pretrain", epochs=1, batch_size=8, optimizer=optimizer, views=views)
    for plain in (stage(), pretrain):
        validation = Validation(plain, 10, 1, Progress(stage="s", stage_step=1))
        assert not validation.is_due() and not validation.is_best() and validation.measured() == {}
        assert validation.figures() == {} and validation.reason_to_end() == "" and validation.end() == {}


def test_the_first_of_the_highest_is_the_best():
    validation, progress = validate([10, 30, 30, 20], keep_best=True)
    assert (progress.best["step"], progress.best["top1"], progress.best["checkpoint"]) == (2, 0.3, "step_2")
    assert progress.without_gain == 2 and not validation.is_best()
    assert validation.figures() == {"val/top1": 0.2, "val/loss": 1.0}
    assert "checkpoint" not in validate([10])[1].best, "nobody keeps it"


def test_the_stage_ends_after_so_many_validations_without_gain():
    validation, _ = validate([10, 30, 30], stop_after=2)
    assert validation.reason_to_end() == "" and "ended_by" not in validation.end()
    validation, progress = validate([10, 30, 30, 20], stop_after=2)
    line = "finetune ends at step 4 of 100 (stop_after): no gain in the last 2 validations over top-1 30.00 % at step 2"
    assert validation.reason_to_end() == line and validation.end()["ended_by"] == "stop_after"
    # A process that resumes from the checkpoint of step 3 decides as this one.
    resumed = Progress(**vars(validate([10, 30, 30], stop_after=2)[1]))
    again, _ = validate([20], resumed, stop_after=2)
    assert again.reason_to_end() == line


def test_the_end_competes_for_the_best_and_is_not_counted_if_the_stage_goes_on():
    progress = Progress(stage="finetune")
    validation = Validation(stage(val_every_epochs=0.2), 10, 3, progress)
    for score in (0.1, 0.2, 0.4):
        progress.advance(0.0)
        if validation.is_due():
            validation.take({"top1": score})
    assert validation.end() == {"best": {"stage": "finetune", "step": 3, "stage_step": 3, "top1": 0.4}}
    assert progress.best["top1"] == 0.2, "with a higher train.max_steps, step 3 is no validation"


def test_a_best_checkpoint_that_could_not_be_written_is_forgotten():
    validation, progress = validate([10, 30, 40], keep_best=True)
    validation.forget(None)
    validation.forget(1)
    assert progress.best["step"] == 3
    validation.forget(3)
    assert progress.best["step"] == 2
    validation.forget(2)
    assert progress.best == {}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.finetune.keep_best=true", "keep_best compares validations, of which there are none"),
        ("stages.finetune.stop_after=3", "stop_after compares validations"),
        ("stages.finetune.val_every_epochs=0", "greater than 0"),
        ("stages.evaluate.weights=best", "the stage before keeps no best checkpoint; set its keep_best: true"),
    ],
)
def test_what_cannot_be_is_one_line(override, said):
    with pytest.raises(UserError) as caught:
        loading.load_recipe("digits", [override])
    (line,) = str(caught.value).splitlines()
    assert said in line


def test_a_run_that_is_continued_may_be_validated_differently():
    before = loading.load_recipe("digits").model_dump(mode="json")
    keys = ("val_every_epochs=1", "keep_best=true", "stop_after=2")
    now = loading.load_recipe("digits", [f"stages.finetune.{key}" for key in keys]).model_dump(mode="json")
    assert loading.changed_key(before, now) is None and before != now
    for key in ("val_every_epochs", "keep_best", "stop_after"):
        del before["stages"]["finetune"][key]
    assert loading.changed_key(before, now) is None, "version 0.1.0 had no such keys"


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_loss_is_the_mean_over_images_whose_logits_are_numbers(kind):
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    logits[2, 3] = math.nan
    known = [0, 1, 3, 4, 5]
    if kind == "softmax":
        expected = F.cross_entropy(logits[known], labels[known])
    else:
        targets = F.one_hot(labels[known], 7).float()
        expected = F.binary_cross_entropy_with_logits(logits[known], targets) * 7
    metrics = evaluate._outcome(evaluate._counts(logits, labels, 7, kind), 7).metrics()
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-6) and metrics["images"] == 6


def test_top_5_of_five_classes_is_left_out():
    outcome = evaluate._outcome(evaluate._counts(torch.eye(5), torch.arange(5), 5), 5)
    assert outcome.metrics().keys() == {"top1", "loss", "ece", "images"}
    assert "top5" in evaluate._outcome(evaluate._counts(torch.eye(6), torch.arange(6), 6), 6).metrics()
