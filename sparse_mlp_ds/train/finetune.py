"""The fine-tuning stage: supervised training of all weights with a fresh head."""

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.mixing import mix
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.average import follow
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.recipe import Evaluate, Supervised
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.evaluate import top_k_accuracy
from sparse_mlp_ds.train.groups import layer_decay


class Classifier(nn.Module):
    """A model under the name `backbone`, which pretraining gives it too: weights are handed over by name."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, classes] and the MoE layers' reports."""
        return self.backbone(images, keys)


def build_classifier(job: Job, stage: Evaluate | None = None) -> Classifier:
    """Build a classifier with freshly drawn weights, its experts spread over the ranks.

    stage: an evaluation that may route otherwise than training does.
    """
    make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes, stage)
    classifier = Classifier(registry.build(job.recipe.spec, job.recipe.data.classes, make_moe))
    init_weights(classifier, job.recipe.train.seed)
    engines.join_expert_groups(classifier)
    return classifier.to(dist.device())


class Finetuning:
    """What the loop needs to know of supervised training."""

    clips = True

    def __init__(self, job: Job, name: str):
        """Build the classifier; the loop loads the weights of the stage before. name: of the stage."""
        stage: Supervised = job.recipe.stages[name]
        self.job, self.stage = job, stage
        self.views = stage.views
        self.module: nn.Module = build_classifier(job)
        self.averaged: nn.Module | None = build_classifier(job).requires_grad_(False) if stage.ema else None
        self.hands_over_average = self.averaged is not None
        self.filled = self.module
        self.rate_scale = layer_decay(stage.layer_decay, job.recipe.spec.depth)

    def begin(self) -> None:
        """Start the average from the weights that were loaded."""
        if self.averaged is not None:
            follow(self.averaged, dict(self.module.named_parameters()), momentum=0.0)

    def losses(self, engine, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Reports]]:
        """Yield each micro-batch's cross-entropy and the MoE layers' reports."""
        return (self._loss(engine, batch) for batch in batches)

    def _loss(self, engine, batch: Batch) -> tuple[Tensor, Reports]:
        (images,), (keys,) = augment.views(batch, self.views, self.job.recipe.train.seed)
        targets = F.one_hot(batch.labels, self.job.recipe.data.classes).float()
        if self.stage.mix:
            images, targets = mix(images, targets, self.stage.mix, keys)
        logits, reports = engine(augment.normalize(images, self.job.recipe.data), keys)
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.stage.label_smoothing), reports

    def before_step(self, engine, step: int) -> None:
        """Nothing to do."""

    def after_step(self, engine, step: int) -> None:
        """Move the average; at first faster, so that it forgets the start. step: optimizer steps taken."""
        if self.averaged is not None:
            momentum = min(self.stage.ema, (1 + step) / (10 + step))
            follow(self.averaged, dict(engines.masters(engine)), momentum)

    def read(self) -> dict[str, float]:
        """Nothing for the log."""
        return {}

    def measure_start(self) -> dict[str, float]:
        """Nothing to measure."""
        return {}

    def measure_end(self) -> dict[str, float]:
        """Return exact top-1 and top-5 on the held-out images."""
        job = self.job
        tested = self.module if self.averaged is None else self.averaged
        forward = lambda images: tested(images)[0].float()  # noqa: E731
        size, batch = job.recipe.spec.image_size, self.stage.evaluation_batch
        return top_k_accuracy(forward, job.val, job.recipe.data, size, batch)
