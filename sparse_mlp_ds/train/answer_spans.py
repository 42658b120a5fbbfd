"""Fine-tuning on questions whose answers are stretches of a text, as in SQuAD (Devlin et al., 2019, 4.2 and 4.3)."""

from typing import Any

from torch import Tensor, nn

from sparse_mlp_ds.config.stages import Evaluate, FinetuneSpan
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import text_checks
from sparse_mlp_ds.train.evaluate_text import answer_outcome, span_losses
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.label_training import LabelTraining
from sparse_mlp_ds.train.text_classification import text_keys


class SpanModel(nn.Module):
    """A text model whose head gives every token two logits: of being an answer's first token, and its last one."""

    def __init__(self, backbone: Backbone):
        """backbone: with a head of two outputs."""
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, n, 2] of tokens [B, n], and the MoE layers' reports. keys: [B] in training, else None."""
        tokens, reports = self.backbone.forward_tokens(inputs, keys)
        return self.backbone.forward_head(tokens), reports


def build_span_model(job: Job, stage: FinetuneSpan | Evaluate) -> SpanModel:
    """Build a model with freshly drawn weights, its experts spread over the ranks.

    stage: the stage that it is for; a training stage may set stochastic depth, an evaluate stage capacity and priority.
    """
    make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes, stage if isinstance(stage, Evaluate) else None)
    spec = job.recipe.spec
    if isinstance(stage, FinetuneSpan) and stage.drop_path is not None:
        spec = spec.model_copy(update={"drop_path": stage.drop_path})
    model = SpanModel(registry.build(spec, 2, make_moe))
    init_weights(model, job.recipe.train.seed)
    engines.join_expert_groups(model)
    return model.to(process_group.device())


class SpanTraining(LabelTraining):
    """Fine-tuning for answers as the loop sees it."""

    def __init__(self, job: Job, name: str):
        """Build the model, and its average if the stage has one. name: the stage's name."""
        self.stage = job.stage(name, FinetuneSpan)
        super().__init__(job, name, lambda: build_span_model(job, self.stage))
        self._named_bad_samples = False

    def _loss(self, engine: Any, batch: Batch) -> tuple[Tensor, Reports]:
        logits, reports = engine(batch.inputs, text_keys(batch, self.job.recipe.train.seed))
        start, end = logits.unbind(dim=2)
        return span_losses(start, end, batch.labels).mean(), reports

    def measure_end(self) -> dict[str, float]:
        """Return F1 and exact matches of the answers to the held-out questions, and the loss of their windows."""
        job, network = self.job, self.measured
        forward = lambda inputs: network(inputs)[0]  # noqa: E731
        tell, self._named_bad_samples = not self._named_bad_samples, True
        data = (job.val, text_checks.load_questions(job.val), job.data_of(self.stage))
        self.outcome = answer_outcome(forward, *data, self.evaluation_batch, self.stage.max_answer, tell)
        return self.outcome.metrics()
