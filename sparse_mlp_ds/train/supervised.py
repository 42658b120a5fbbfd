"""Supervised training and fine-tuning of classifiers: all weights are trained on labels, with a new head."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sparse_mlp_ds.config.stages import ClassifierStage, Evaluate, ImageClassifierStage
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.mixup import mix
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.deit import DistilledVisionTransformer
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.stats import Reports
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.distillation import Teacher, distillation_loss
from sparse_mlp_ds.train.evaluate import outcomes
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.label_training import LabelTraining


class Classifier(nn.Module):
    """A model under the name `backbone`, as in pretraining: stages pass weights on by name."""

    def __init__(self, backbone: Backbone, distills: bool = False):
        """distills: whether both heads' logits are wanted in training, which a teacher and labels train apart."""
        super().__init__()
        self.backbone = backbone
        self.distills = distills

    def forward(self, inputs: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Reports]:
        """Return logits [B, classes], or both heads' [2, B, classes] when it distills, and the MoE layers' reports.

        Args:
            inputs: images [B, 3, H, W], normalised, or tokens [B, n].
            keys: [B] in training; None in evaluation, where the logits are always [B, classes].
        """
        if self.distills and keys is not None:
            assert isinstance(self.backbone, DistilledVisionTransformer)  # as the recipe was checked
            return self.backbone.forward_both(inputs, keys)
        return self.backbone(inputs, keys)


def build_classifier(job: Job, stage: ClassifierStage | Evaluate) -> Classifier:
    """Build a classifier with freshly drawn weights, its experts spread over the ranks.

    stage: the stage that it is for; a training stage may set stochastic depth, an evaluate stage capacity and priority.
    """
    evaluate, train = (stage, None) if isinstance(stage, Evaluate) else (None, stage)
    make_moe = engines.expert_parallel(job.recipe.moe, job.ep_sizes, evaluate)
    spec, classes = job.recipe.spec, job.recipe.data.class_count
    if train and train.drop_path is not None:
        spec = spec.model_copy(update={"drop_path": train.drop_path})
    distills = isinstance(train, ImageClassifierStage) and train.distill is not None
    classifier = Classifier(registry.build(spec, classes, make_moe), distills)
    init_weights(classifier, job.recipe.train.seed)
    if train and train.loss == "sigmoid":
        # Every class starts about as likely as it is: V-MoE's and big_vision's code. From 1/2 the loss, a sum over
        # classes, would start in the hundreds.
        nn.init.constant_(classifier.backbone.get_parameter("head.bias"), -math.log(classes))
    engines.join_expert_groups(classifier)
    return classifier.to(process_group.device())


def classification_loss(logits: Tensor, targets: Tensor, stage: ClassifierStage) -> Tensor:
    """Return the stage's loss, averaged over images; logits and soft targets are [B, classes]."""
    if stage.loss == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()
    return F.cross_entropy(logits, targets, label_smoothing=stage.label_smoothing)


class ClassifierTraining(LabelTraining):
    """Base of the methods that train a classifier; a subclass defines `_loss`."""

    module: Classifier

    def __init__(self, job: Job, name: str):
        """Build the classifier, and its average if the stage has one. name: the stage's name."""
        settings = job.stage(name, ClassifierStage)
        super().__init__(job, name, lambda: build_classifier(job, settings))
        self._loss_kind = settings.loss
        self._named_bad_samples = False

    def measure_end(self) -> dict[str, float]:
        """Return exact top-1, top-5, loss and calibration error on the held-out samples.

        They are those of the average where there is one. Nothing of training changes, so validations measure the same.
        """
        job, network = self.job, self.measured
        forward = lambda inputs: network(inputs)[0].float()  # noqa: E731
        tell, self._named_bad_samples = not self._named_bad_samples, True
        evaluation = (job.val, job.recipe.data, job.image_size, self.evaluation_batch, self._loss_kind, tell)
        (self.outcome,) = outcomes(forward, *evaluation)
        return self.outcome.metrics()


class SupervisedTraining(ClassifierTraining):
    """Supervised training on images as the loop sees it."""

    def __init__(self, job: Job, name: str):
        """Build the classifier, its average if the stage has one, and its teacher. name: the stage's name."""
        super().__init__(job, name)
        self.stage = stage = job.stage(name, ImageClassifierStage)
        self.teacher = Teacher(stage.distill.teacher, job.recipe) if stage.distill else None
        self.teacher_digest = self.teacher.digest if self.teacher else ""

    @property
    def networks(self) -> list[nn.Module]:
        """The classifier, the average of its weights, and the teacher."""
        return [*super().networks, *([self.teacher.model] if self.teacher else [])]

    def _loss(self, engine: Any, batch: Batch) -> tuple[Tensor, Reports]:
        recipe = self.job.recipe
        (images,), (keys,) = augment.views(batch, self.views, recipe.train.seed, recipe.data)
        targets = F.one_hot(batch.labels, recipe.data.class_count).float()
        if self.stage.mix:
            images, targets = mix(images, targets, self.stage.mix, keys)
        logits, reports = engine(augment.normalize(images, recipe.data), keys)
        if self.teacher is None or self.stage.distill is None:
            return classification_loss(logits.float(), targets, self.stage), reports
        classified, distilled = logits.float()
        labels_part = classification_loss(classified, targets, self.stage)
        return distillation_loss(labels_part, distilled, self.teacher.logits(images), self.stage.distill), reports
