"""Fine-tuning on text with a class for each sequence: sentences, pairs of sentences, or documents."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.text_stages import FinetuneText
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.supervised import ClassifierTraining, classification_loss


def text_keys(batch: Batch, seed: int) -> Tensor:
    """Return the random keys [B] of a micro-batch of sequences, for dropout, stochastic depth and gate noise.

    seed: seed of the run.
    """
    return rng.sample_keys(seed, batch.numbers, "text")


class TextClassification(ClassifierTraining):
    """Fine-tuning for the classes of sequences as the loop sees it."""

    def __init__(self, job: Job, name: str):
        """Build the classifier, and its average if the stage has one. name: the stage's name."""
        super().__init__(job, name)
        self.stage = job.stage(name, FinetuneText)

    def _loss(self, engine: Any, batch: Batch) -> tuple[Tensor, Reports]:
        recipe = self.job.recipe
        logits, reports = engine(batch.inputs, text_keys(batch, recipe.train.seed))
        targets = F.one_hot(batch.labels, recipe.data.class_count).float()
        return classification_loss(logits.float(), targets, self.stage), reports
