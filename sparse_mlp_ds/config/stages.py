"""The stages of a recipe as typed sections: what is trained, from which weights, and how it is measured."""

from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt

from sparse_mlp_ds.config.stage_base import (
    ClassifierStage,
    InitFrom,
    LabelStage,
    Optimizer,
    TrainingStage,
    ValidatedStage,
)
from sparse_mlp_ds.config.text_stages import FinetuneSpan, FinetuneText, MaskedLM
from sparse_mlp_ds.data.config import LocalPath, Mix, View
from sparse_mlp_ds.schema import Probability, Section

__all__ = (  # the stages of every recipe, wherever they are written
    "AnyTrainingStage",
    "ClassifierStage",
    "Distill",
    "Evaluate",
    "Finetune",
    "FinetuneSpan",
    "FinetuneText",
    "ImageClassifierStage",
    "ImageStage",
    "InitFrom",
    "LabelStage",
    "MaskedLM",
    "Optimizer",
    "Pretrain",
    "Probe",
    "Stage",
    "Supervised",
    "TextStage",
    "TrainingStage",
    "ValidatedStage",
)


class Distill(Section):
    """Distillation as in DeiT (Touvron et al., 2021): the model's second token learns from a teacher that sees the same
    images."""

    teacher: LocalPath
    """The teacher: the folder of an export, a run or a checkpoint, with the same classes and image size."""
    type: Literal["hard", "soft"] = "hard"
    """What is learnt: the teacher's most likely class (`hard`), or its probabilities (`soft`)."""
    alpha: Probability = 0.5
    """Weight of the teacher's part of the loss; the labels' part has the rest."""
    temperature: PositiveFloat = 1.0
    """Divides both sides' logits in `soft` distillation."""


class Pretrain(TrainingStage):
    """MoCo v3 (Chen, Xie and He, 2021): contrastive learning without labels."""

    kind: Literal["pretrain"]
    """Selects this kind of stage."""
    views: tuple[View, View]
    """How the two views of each image are drawn."""
    temperature: PositiveFloat = 0.2
    """Temperature of the contrastive loss."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Momentum of the momentum encoder at the start of the stage; it rises to 1 along half a cosine."""
    momentum_precision: Literal["float32", "run"] = "float32"
    """Type in which the momentum encoder computes: float32, or that of the run. Its average is float32 either way."""
    hidden: PositiveInt = 4096
    """Width of the hidden layers of projector and predictor."""
    dim: PositiveInt = 256
    """Length of the vectors that are contrasted."""
    contrast: Literal["batch", "micro_batch"] = "batch"
    """Which keys each query meets under gradient accumulation: those of the whole step (`batch`), which costs one more
    forward pass, or those of its own micro-batch (`micro_batch`)."""
    freeze_patch: bool = True
    """Keep the patch projection at its random initial values, which stabilises training (MoCo v3, section 4.2)."""
    knn_k: PositiveInt = 20
    """Neighbours of the k-NN classifier that measures the features before and after the stage."""
    knn_every_epochs: PositiveFloat | None = None
    """Epochs between further k-NN measurements, which go into the log; null measures before and after the stage."""
    knn_images: PositiveInt = 50_000
    """Number of training images among which the k-NN classifier searches, spread over the whole training set."""

    @property
    def crops(self) -> tuple[View, ...]:
        """The views that are drawn from each image."""
        return self.views


class ImageClassifierStage(ClassifierStage):
    """Further keys of the stages that train a classifier of images."""

    view: View
    """How the view of each image is drawn."""
    mix: Mix | None = None
    """Mixes each image and its label with a neighbour's; null mixes none."""
    distill: Distill | None = None
    """Learns from a teacher too; the model needs `distillation_token: true`. null learns from labels alone."""

    @property
    def crops(self) -> tuple[View, ...]:
        """The views that are drawn from each image."""
        return (self.view,)


class Supervised(ImageClassifierStage):
    """Supervised training from scratch, or from weights on disk, whatever stage comes before."""

    kind: Literal["supervised"]
    """Selects this kind of stage."""


class Finetune(ImageClassifierStage):
    """Fine-tuning: training on labels with a new head, from the weights of the stage before or from weights on disk."""

    kind: Literal["finetune"]
    """Selects this kind of stage."""


class Probe(TrainingStage):
    """Linear evaluation: linear heads on frozen features. The backbone is passed on as it was."""

    kind: Literal["probe"]
    """Selects this kind of stage."""
    view: View = View()
    """How the view of each image is drawn."""
    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """One linear head is trained for each of these multiples of the learning rate. Gradients are not clipped, which
    would couple the heads."""
    knn_k: PositiveInt = 20
    """Neighbours of the weighted k-NN classifier on the same features."""

    @property
    def crops(self) -> tuple[View, ...]:
        """The views that are drawn from each image."""
        return (self.view,)


class Evaluate(Section):
    """Evaluation of the weights of the stage before, written to RUN/NAME.json for a stage called NAME: top-1, top-5,
    calibration error and figures by class; perplexity after `mlm`; exact matches, F1 and all answers after
    `finetune_span`."""

    kind: Literal["evaluate"]
    """Selects this kind of stage."""
    batch_size: PositiveInt = 256
    """Samples per forward pass over all ranks."""
    weights: Literal["last", "best"] = "last"
    """Which weights of the stage before are evaluated: those at its end (`last`), or those of its best validation
    (`best`), for which that stage needs `keep_best: true`."""
    capacity_factor: PositiveFloat | None = None
    """Slots per expert, as a multiple of its even share of the items of one sample; null drops nothing."""
    priority: Literal["position", "importance"] = "importance"
    """Which items an expert serves first where `capacity_factor` drops some: by `position`, or by gate weight
    (`importance`)."""


ImageStage = Pretrain | Supervised | Finetune | Probe
TextStage = MaskedLM | FinetuneText | FinetuneSpan
TEXT_KINDS = frozenset(get_args(stage.model_fields["kind"].annotation)[0] for stage in get_args(TextStage))
"""The values of `kind` of stages that train on text."""
AnyTrainingStage = ImageStage | TextStage
Stage = Annotated[AnyTrainingStage | Evaluate, Field(discriminator="kind")]
