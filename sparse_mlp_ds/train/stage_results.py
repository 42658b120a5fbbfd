"""RUN/STAGE.json and RUN/STAGE.hits.json: how the model of a finished stage did, in all figures and by sample."""

from collections.abc import Sequence
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.train.evaluate import Outcome
from sparse_mlp_ds.train.evaluate_text import AnswerOutcome, MaskedOutcome
from sparse_mlp_ds.train.run_folder import RunFolder

AnyOutcome = Outcome | MaskedOutcome | AnswerOutcome
COUNTS = ("images", "sequences")
"""Names of the numbers of samples among the metrics."""
MOST_CLASSES = 2000
"""Most classes of which a training stage writes the confusion matrix, which then has 4 million entries."""


def content(outcome: AnyOutcome, classes: Sequence[str], confusion: bool = True) -> dict[str, Any]:
    """Return the content of RUN/STAGE.json.

    Args:
        outcome: What was measured.
        classes: A name for each class.
        confusion: Whether the confusion matrix of a classifier is part of it.
    """
    if not isinstance(outcome, Outcome):
        return outcome.content()
    # Lists by class number: names repeat, as ImageNet's "crane".
    record: dict[str, Any] = {"classes": list(classes), "top1_by_class": outcome.per_class()}
    record |= {"images_by_class": outcome.confusion.sum(dim=1).tolist(), "calibration": outcome.calibration.tolist()}
    return outcome.metrics() | record | ({"confusion": outcome.confusion.tolist()} if confusion else {})


def of_training(outcome: AnyOutcome, classes: Sequence[str]) -> dict[str, Any]:
    """Return the content for a training stage, whose confusion matrix is left out if it is very large."""
    return content(outcome, classes, confusion=len(classes) <= MOST_CLASSES)


def split(metrics: dict[str, float]) -> tuple[dict[str, float], int]:
    """Return metrics without the number of samples, and that number; 0 where none were measured."""
    count = next((int(metrics[name]) for name in COUNTS if name in metrics), 0)
    return {name: value for name, value in metrics.items() if name not in COUNTS}, count


def write_hits(folder: RunFolder, name: str, outcome: AnyOutcome, val: Index) -> None:
    """Write RUN/STAGE.hits.json of a stage that measured a classifier. val: the samples that were counted."""
    if not isinstance(outcome, Outcome):
        return
    assert outcome.marks is not None  # `outcomes` has filled it
    tars = "".join(f"{shard.name} {shard.sha256} {len(shard)}\n" for shard in val.shards)
    content = image_hits.packed(outcome.marks.numpy(), files.sha256_of([tars.encode()]))
    folder.write(image_hits.file_name(name), content)
