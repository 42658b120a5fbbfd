"""What the stages of a recipe that train have in common: their length, optimizer, first weights, and validations."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sparse_mlp_ds.data.config import View, WeightsPlace
from sparse_mlp_ds.schema import Probability, Section


class Optimizer(Section):
    """The update rule and the learning rate's schedule: linear warm-up, then decay."""

    name: Literal["adamw", "sgd", "lamb", "lars"] = "adamw"
    """The update rule."""
    base_lr: PositiveFloat
    """Peak learning rate per 256 samples: the rate used is base_lr x batch_size / 256."""
    expert_lr_scale: PositiveFloat = 1.0
    """Learning rate of the experts, as a multiple of everything else's. An expert sees few of a step's items, so its
    gradients are noisier than those of a dense MLP."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay; see `exempt_vectors`."""
    exempt_vectors: bool = True
    """Vectors (biases, norms, the class token) do not decay, and lamb and lars do not rescale their updates. False
    treats them like matrices, as torch.optim.AdamW(model.parameters()) does."""
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    """Decay rates of the first and second moments in adamw and lamb."""
    eps: PositiveFloat | None = None
    """Added to the root of the second moment in adamw and lamb; null is 1e-8 in adamw and 1e-6 in lamb."""
    momentum: Probability = 0.9
    """Momentum of sgd and lars."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs in which the learning rate rises linearly from zero to its peak."""
    warmup_steps: NonNegativeInt | None = None
    """Length of the warm-up in optimizer steps, instead of `warmup_epochs`."""
    decay: Literal["cosine", "linear"] = "cosine"
    """Shape of the learning rate's decay from its peak to `final_lr`, after warm-up."""
    final_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the stage; unlike `base_lr` it is not multiplied by batch_size / 256."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "Optimizer":
        if self.warmup_steps is not None and self.warmup_epochs:
            raise ValueError("warmup_epochs and warmup_steps are two lengths of one warm-up; remove one of them")
        return self

    def peak_lr(self, samples: int) -> float:
        """Return the learning rate at the end of warm-up. samples: samples per optimizer step."""
        return self.base_lr * samples / 256

    def warmup(self, steps_per_epoch: int) -> int:
        """Return the length of the warm-up in optimizer steps."""
        return round(self.warmup_epochs * steps_per_epoch) if self.warmup_steps is None else self.warmup_steps


class InitFrom(Section):
    """Weights that a stage starts from: published ones, see docs/weights.md, or weights of this package."""

    path: WeightsPlace
    """A .safetensors or .npz file, or the URL of one; the folder of an export, a run or a checkpoint; or
    `hf://OWNER/NAME` of the Hugging Face Hub."""
    upcycle: bool = False
    """Turn a dense Mixer's weights into those of a sparse model: its MLPs become experts where the shapes allow it."""
    noise: NonNegativeFloat = 0.0
    """Relative size of the random numbers that upcycling adds to the weights of each expert, so that experts differ."""
    resize: Literal["bilinear", "bicubic", "block"] = "bilinear"
    """How token-mixing weights are resized to a different number of patches."""
    head: bool = True
    """Take the head of a classifier too if it has as many classes, which must then be the same ones; false: start with
    a fresh head."""


class TrainingStage(Section):
    """Keys that every training stage has."""

    init_from: InitFrom | None = None
    """Weights to start from, instead of those of the stage before."""
    epochs: PositiveFloat | None = None
    """Length of the stage in passes over the training samples; a stage has either `epochs` or `steps`."""
    steps: PositiveInt | None = None
    """Length of the stage in optimizer steps, instead of `epochs`."""
    batch_size: PositiveInt
    """Samples (images, or sequences of tokens) per optimizer step over all ranks."""
    optimizer: Optimizer
    """The update rule and the learning rate's schedule."""
    kind: str
    """Selects what the stage does."""

    @model_validator(mode="after")
    def _has_one_length(self) -> "TrainingStage":
        if self.epochs is None and self.steps is None:
            raise ValueError("epochs or steps: one of them is required; add it")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are two lengths of one stage; remove one, or set it to null")
        return self

    @property
    def crops(self) -> tuple[View, ...]:
        """The views that are drawn from each image; none where the samples are text."""
        return ()

    def length(self, steps_per_epoch: int) -> int:
        """Return the length of the whole stage in optimizer steps, at least 1."""
        return self.steps or max(round((self.epochs or 0) * steps_per_epoch), 1)


class ValidatedStage(TrainingStage):
    """Keys of the stages that can be validated on the way: those that train on labels, and masked language models."""

    val_every_epochs: PositiveFloat | None = None
    """Epochs between two validations, which measure the weights that the stage would pass on, on all held-out samples;
    fractions are rounded to whole steps. The end of the stage is validated too. null measures at the end alone."""
    val_every_steps: PositiveInt | None = None
    """Optimizer steps between two validations, instead of `val_every_epochs`."""
    keep_best: bool = False
    """Keep the checkpoint of the best validation (of equal ones the first) until a better one is there: the one with
    the highest top-1 or F1, or the lowest perplexity. `val_every_epochs` or `val_every_steps` must be set."""
    stop_after: PositiveInt | None = None
    """End the stage after so many validations in a row that are not better than the best before them;
    `val_every_epochs` or `val_every_steps` must be set. null never ends it early."""

    @model_validator(mode="after")
    def _validates_what_it_compares(self) -> "ValidatedStage":
        wanted = [key for key in ("keep_best", "stop_after") if getattr(self, key)]
        if wanted and self.val_every_epochs is None and self.val_every_steps is None:
            raise ValueError(f"{wanted[0]} compares validations, of which there are none; set val_every_epochs")
        if self.val_every_epochs is not None and self.val_every_steps is not None:
            raise ValueError("val_every_epochs and val_every_steps say the same thing; remove one of them")
        return self

    def validates_every(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps between two validations; 0 without any."""
        if self.val_every_epochs is not None:
            return max(round(self.val_every_epochs * steps_per_epoch), 1)
        return self.val_every_steps or 0


class LabelStage(ValidatedStage):
    """Keys of the stages that train all weights on labels, with a new head."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth of the last block in this stage; null takes the model's."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Layer-wise decay: each block's learning rate as a multiple of the rate of the block after it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Momentum of a moving average of the weights, which is evaluated and passed on in their place; null keeps none."""


class ClassifierStage(LabelStage):
    """Keys of the stages that train a classifier, of images or of text, on labels."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over the classes (`softmax`), or the sum of one binary cross-entropy per class (`sigmoid`)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each label that is spread evenly over all classes; the loss `sigmoid` needs 0."""
    label_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each class's training samples that the stage is trained on, at least one of each; the seed chooses
    them. With 0.1 after pretraining it is what papers call fine-tuning on 10 % of the labels."""

    @model_validator(mode="after")
    def _smooths_one_distribution(self) -> "ClassifierStage":
        # A sigmoid per class is no distribution over them; no paper says what smoothing would be there.
        if self.loss == "sigmoid" and self.label_smoothing:
            raise ValueError("loss sigmoid has no label_smoothing; set label_smoothing: 0, or loss: softmax")
        return self
