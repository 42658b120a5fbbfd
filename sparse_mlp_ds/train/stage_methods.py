"""Which method trains a stage, by the stage's kind."""

from collections.abc import Callable

from sparse_mlp_ds.config.stages import (
    Finetune,
    FinetuneSpan,
    FinetuneText,
    MaskedLM,
    Pretrain,
    Probe,
    Supervised,
)
from sparse_mlp_ds.train.answer_spans import SpanTraining
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.linear_probe import LinearProbe
from sparse_mlp_ds.train.masked_lm import MaskedLanguageModelling
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.moco import MoCo
from sparse_mlp_ds.train.supervised import SupervisedTraining
from sparse_mlp_ds.train.text_classification import TextClassification

METHODS: dict[type, Callable[[Job, str], Method]] = {
    Pretrain: MoCo,
    Supervised: SupervisedTraining,
    Finetune: SupervisedTraining,
    Probe: LinearProbe,
    MaskedLM: MaskedLanguageModelling,
    FinetuneText: TextClassification,
    FinetuneSpan: SpanTraining,
}
"""Class of a stage's section -> what builds its method, given the run and the stage's name."""
