"""Masked language modelling: a text model restores hidden tokens of each sequence (BERT; gMLP's section 4)."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sparse_mlp_ds.config.stages import Evaluate, MaskedLM
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.masking import IGNORED, mask
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.language import MaskedModel
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.evaluate_text import masked_outcome, token_losses
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.text_classification import text_keys


def build_masked_model(job: Job, evaluate: Evaluate | None = None) -> MaskedModel:
    """Build the model with freshly drawn weights, its experts spread over the ranks.

    evaluate: an evaluate stage, whose capacity and priority then replace those of the recipe.
    """
    make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes, evaluate)
    model = MaskedModel(registry.build(job.recipe.spec, make_moe=make_moe), job.text.vocabulary)
    init_weights(model, job.recipe.train.seed)
    engines.join_expert_groups(model)
    return model.to(process_group.device())


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of hidden tokens in nats: its mean over each sequence's places, then over sequences.

    logits: [B, m, V]. targets: [B, m]; IGNORED counts nowhere.
    """
    losses = token_losses(logits.flatten(0, 1), targets.flatten())
    places = (targets != IGNORED).sum(dim=1).clamp(min=1)
    return (losses.view(targets.shape).sum(dim=1) / places).mean()


class MaskedLanguageModelling(Method):
    """Masked language modelling as the loop sees it."""

    module: MaskedModel
    views = ()

    def __init__(self, job: Job, name: str):
        """Build the model. name: the stage's name."""
        self.job, self.stage = job, job.stage(name, MaskedLM)
        self.module = build_masked_model(job)
        self.evaluation_batch = job.evaluation_batch(name)
        self._named_bad_samples = False

    def losses(self, engine: Any, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield the loss of each micro-batch and the reports of its MoE layers."""
        for batch in batches:
            keys = text_keys(batch, self.job.recipe.train.seed)
            masked = mask(batch.inputs, keys, self.job.text, self.stage.mask_share)
            logits, reports = engine(masked.inputs, masked.places, keys)
            yield masked_loss(logits, masked.targets), reports

    def measure_end(self) -> dict[str, float]:
        """Return perplexity, accuracy and loss at the hidden tokens of held-out sequences; {} without any."""
        if not len(self.job.val):
            return {}
        tell, self._named_bad_samples = not self._named_bad_samples, True
        job = self.job
        forward = lambda inputs, places: self.module(inputs, places)[0]  # noqa: E731
        evaluation = (job.val, job.data_of(self.stage), self.evaluation_batch, self.stage.mask_share, tell)
        self.outcome = masked_outcome(forward, *evaluation)
        return self.outcome.metrics()
