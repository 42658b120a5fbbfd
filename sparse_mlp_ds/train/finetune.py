"""The fine-tuning stage: supervised training of all weights with a fresh head."""

import math
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
from sparse_mlp_ds.stages import Evaluate, Supervised
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


def build_classifier(job: Job, stage: Supervised | Evaluate) -> Classifier:
    """Build a classifier with freshly drawn weights, its experts spread over the ranks.

    stage: that it is for; training may have stochastic depth of its own, an evaluation may route otherwise.
    """
    evaluate = stage if isinstance(stage, Evaluate) else None
    make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes, evaluate)
    spec, classes = job.recipe.spec, job.recipe.data.classes
    if evaluate is None and stage.drop_path is not None:
        spec = spec.model_copy(update={"drop_path": stage.drop_path})
    classifier = Classifier(registry.build(spec, classes, make_moe))
    init_weights(classifier, job.recipe.train.seed)
    if evaluate is None and stage.loss == "sigmoid":
        # Every class starts about as likely as it is: V-MoE's and big_vision's code. From 1/2 the loss, a sum over
        # classes, would start in the hundreds.
        nn.init.constant_(classifier.backbone.head.bias, -math.log(classes))
    engines.join_expert_groups(classifier)
    return classifier.to(dist.device())


def classification_loss(logits: Tensor, targets: Tensor, stage: Supervised) -> Tensor:
    """Return the mean over images of the stage's loss; logits and soft targets: [B, classes]."""
    if stage.loss == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()
    return F.cross_entropy(logits, targets, label_smoothing=stage.label_smoothing)


class Finetuning:
    """What the loop needs to know of supervised training."""

    clips = True

    def __init__(self, job: Job, name: str):
        """Build the classifier; the loop loads the weights of the stage before. name: of the stage."""
        stage: Supervised = job.recipe.stages[name]
        self.job, self.stage = job, stage
        self.views = stage.views
        self.module: nn.Module = build_classifier(job, stage)
        self.averaged: nn.Module | None = build_classifier(job, stage).requires_grad_(False) if stage.ema else None
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
        return classification_loss(logits.float(), targets, self.stage), reports

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
