"""Counts of an evaluation: logits that are not numbers count as misses, and what a stage writes of them."""

import pytest
import torch

from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.shards import scan
from sparse_mlp_ds.train import evaluate, stage_results
from tests.helpers.tars import sample, write_tar

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
RIGHT = torch.nn.functional.one_hot(LABELS, 7).float() * 9


@pytest.mark.parametrize("rows", [[], [0], [2, 5], list(range(6))])
@pytest.mark.parametrize("whole", [True, False])
def test_nan_is_a_miss_of_confidence_0(rows, whole):
    logits = RIGHT.clone()
    logits[rows, slice(None) if whole else 3] = float("nan")
    outcome = evaluate._outcome(evaluate._counts(logits, LABELS, 7), 7)
    metrics = outcome.metrics()
    assert outcome.undefined == len(rows)
    assert metrics["images"] == 6 and metrics["top1"] == metrics["top5"] == (6 - len(rows)) / 6
    assert torch.isfinite(outcome.calibration).all() and outcome.calibration[:, 0].sum() == 6


def test_infinite_logits_are_numbers():
    logits = RIGHT.clone()
    logits[:, 5] = float("-inf")
    outcome = evaluate._outcome(evaluate._counts(logits, LABELS, 7), 7)
    assert (outcome.undefined, outcome.metrics()["top1"]) == (0, 1.0)


def test_images_that_cannot_be_decoded_are_named_wherever_they_are_left_out(tmp_path, capsys):
    """Accuracy and k-NN alike: an image that is not counted is said."""
    members = [member for n in range(9) for member in sample(f"{n}", n % 3)]
    write_tar(tmp_path / "a.tar", *members, ("text.png", b"no image"), ("text.cls", b"0"))
    index, size = scan.make_index(tmp_path), 8
    data = Data(train=str(tmp_path), val=str(tmp_path), classes=3, workers=0, bad_limit=0.5)
    forward = lambda images: images.flatten(1)[:, :3]  # noqa: E731
    evaluate.outcomes(forward, index, data, size, 4)
    (line,) = capsys.readouterr().out.splitlines()
    evaluate.knn_accuracy(forward, index, index, data, size, 4, k=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # as a neighbour, and as a query
    for said in (line, *lines):
        assert f"not counted: {tmp_path}/a.tar: sample 'text': cannot be decoded (" in said


def test_a_stage_with_very_many_classes_writes_no_confusion_matrix(monkeypatch):
    outcome = evaluate.Outcome(torch.tensor([[2, 1], [0, 0]]), 3, torch.tensor([[3.0, 2.0, 1.5]]))
    record = stage_results.of_training(outcome, ["a", "b"])
    assert record["confusion"] == [[2, 1], [0, 0]] and record["top1_by_class"] == [pytest.approx(2 / 3), None]
    assert (record["images_by_class"], record["calibration"]) == ([3, 0], [[3.0, 2.0, 1.5]])
    monkeypatch.setattr(stage_results, "MOST_CLASSES", 1)
    assert stage_results.of_training(outcome, ["a", "b"]) == {k: v for k, v in record.items() if k != "confusion"}
