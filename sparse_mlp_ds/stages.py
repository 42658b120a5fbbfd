"""The stages of a recipe as typed sections: what is trained, from what, and how it is measured."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from sparse_mlp_ds.data.sections import Mix, View
from sparse_mlp_ds.section import Probability, Section


class Optimizer(Section):
    """The update rule and its schedule: linear warm-up, then a fall to zero."""

    name: Literal["adamw", "sgd", "lamb", "lars"] = "adamw"
    base_lr: PositiveFloat
    """Peak learning rate per 256 images: the rate used is base_lr x batch_size / 256."""
    weight_decay: NonNegativeFloat = 0.1
    """Not applied to vectors (biases, norms), which lamb and lars do not scale either."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Of adamw and lamb."""
    eps: PositiveFloat | None = None
    """Of adamw and lamb, added to the root of the second moment; null is 1e-8 and 1e-6."""
    momentum: Probability = 0.9
    """Of sgd and lars."""
    warmup_epochs: NonNegativeFloat = 0.0
    decay: Literal["cosine", "linear"] = "cosine"
    """How the rate falls after warm-up."""


class InitFrom(Section):
    """Weights that a first stage starts from: timm's or Google's Mixers, or this package's own."""

    path: Path
    """A .safetensors or .npz file; or an export's, a run's or a checkpoint's folder."""
    upcycle: bool = False
    """The weights are those of a dense Mixer and the model sparse: dense MLPs become experts where shapes allow it."""
    noise: NonNegativeFloat = 0.0
    """Relative size of what upcycling adds to each expert's weights, so that they differ."""
    resize: Literal["bilinear", "bicubic", "block"] = "bilinear"
    """How token-mixing weights come to another number of patches."""


class TrainingStage(Section):
    """What pretraining and fine-tuning have in common."""

    init_from: InitFrom | None = None
    """Weights to start from; the stage before it, if there is one, is then not looked at."""
    epochs: PositiveFloat
    batch_size: PositiveInt
    """Images per optimizer step over all ranks."""
    optimizer: Optimizer

    @property
    def evaluation_batch(self) -> int:
        """Images per forward pass over all ranks when the stage measures itself, which keeps no activations."""
        return 4 * self.batch_size


class Pretrain(TrainingStage):
    """MoCo v3 (Chen, Xie and He, 2021): contrastive learning without labels."""

    kind: Literal["pretrain"]
    views: tuple[View, View]
    temperature: PositiveFloat = 0.2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the momentum encoder at the start; rises to 1 by half a cosine."""
    hidden: PositiveInt = 4096
    """Width of the projector's and predictor's hidden layers."""
    dim: PositiveInt = 256
    """Length of the contrasted vectors."""
    contrast: Literal["batch", "micro_batch"] = "batch"
    """What a query is contrasted with under gradient accumulation: all images of the step, which costs one more forward
    pass, or those of its micro-batch."""
    freeze_patch: bool = True
    """Keep the random patch projection as it is, which steadies training (MoCo v3, 4.2)."""
    knn_k: PositiveInt = 20
    """Neighbours of the k-NN monitor, measured before and after the stage."""
    knn_every_epochs: PositiveFloat | None = None
    """And in between, into the log."""
    knn_images: PositiveInt = 50_000
    """Training images that it looks among, spread over all of them."""


class Supervised(TrainingStage):
    """Training of all weights on labels, from fresh ones or from a file's, whatever stage comes before."""

    kind: Literal["supervised"]
    view: View
    mix: Mix | None = None
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over the classes, or the sum of a binary one for each class."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth in this stage, in place of the model's: pretraining often has less."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block's learning rate over that of the block after it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Momentum of an average of the weights, which is then what is tested and handed over."""

    @model_validator(mode="after")
    def _smooths_one_distribution(self):
        # A sigmoid per class is no distribution over them; no paper says what smoothing would be there.
        if self.loss == "sigmoid" and self.label_smoothing:
            raise ValueError("loss sigmoid has no label_smoothing; set label_smoothing: 0, or loss: softmax")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """What is drawn from each image."""
        return (self.view,)


class Finetune(Supervised):
    """The same from the weights of the stage before it, or of a file, with a fresh head."""

    kind: Literal["finetune"]


class Probe(TrainingStage):
    """Linear evaluation: heads on frozen features, one for each learning rate, all in one pass."""

    kind: Literal["probe"]
    view: View = View()
    rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.1, 0.3, 1.0, 3.0, 10.0)
    """Learning rates of the heads over the optimizer's; clipping is off, so that they do not meet."""
    knn_k: PositiveInt = 20
    """Neighbours of the weighted k-NN classifier on the same features."""

    @property
    def views(self) -> tuple[View, ...]:
        """What is drawn from each image."""
        return (self.view,)


class Evaluate(Section):
    """Exact top-1 and top-5 on the held-out images, with the weights of the stage before it."""

    kind: Literal["evaluate"]
    batch_size: PositiveInt = 256
    capacity_factor: PositiveFloat | None = None
    """Drop what exceeds this share of an expert's even load, counted within each image; null drops nothing."""
    priority: Literal["position", "importance"] = "importance"
    """Who is served first then."""


Stage = Annotated[Pretrain | Supervised | Finetune | Probe | Evaluate, Field(discriminator="kind")]
