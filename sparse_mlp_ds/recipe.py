"""The recipe as typed sections; `config.load_recipe` reads one.

The recipe owns model, routing, data, objective, optimizer values, schedule and logging; `ds_config` owns ZeRO,
precision, clipping and communication.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sparse_mlp_ds.data.sections import Data, Mix, View
from sparse_mlp_ds.errors import did_you_mean
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import PatchSpec
from sparse_mlp_ds.section import Probability, Section


class MoE(Section):
    """How items are routed and where experts live; how many there are belongs to the model."""

    ep_size: PositiveInt | Literal["auto"] = "auto"
    """Ranks that share one full set of experts; `auto` takes the largest that divides experts and ranks."""
    group_images: PositiveInt = 8
    """Images per routing group: capacity and balance are counted inside it."""
    capacity_factor_s: PositiveFloat | None = 1.05
    """Slots per expert over the even share in MoE_S, in training; null drops nothing."""
    capacity_factor_c: PositiveFloat | None = 1.05
    """The same in MoE_C."""
    priority: Literal["position", "importance", "random", "expert_choice"] = "position"
    """Who is served first when an expert is full; or `expert_choice`, where experts take the items."""
    renormalize: bool = False
    """Divide the kept gate weights by their sum; the paper does not."""
    noise: NonNegativeFloat = 1.0
    """Gate noise in units of the paper's standard deviation 1/N."""
    balance: Literal["importance_load", "switch"] = "importance_load"
    """The paper's balance losses, or Switch Transformer's."""
    balance_weight: NonNegativeFloat = 0.01
    """lambda of the balance losses."""
    z_weight: NonNegativeFloat = 0.0
    """Weight of the router's z-loss."""

    @field_validator("ep_size", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"expected a positive integer or auto, not {value!r}")
        return value


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
    """A file of weights that a first stage starts from: timm's or Google's Mixers, or this package's own."""

    path: Path
    """.safetensors or .npz."""
    upcycle: bool = False
    """The file is a dense Mixer and the model sparse: dense MLPs become experts where shapes allow it."""
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


class Train(Section):
    """What holds for every training stage."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seeds weights, data order, augmentation and gate noise."""
    max_steps: PositiveInt | None = None
    """End every training stage after this many optimizer steps; its schedule stays that of the full stage."""
    max_skipped: NonNegativeInt = 10
    """Most steps in a row that may be skipped because their gradients are not finite."""
    timeout_seconds: PositiveFloat = 600
    """How long a rank waits for the others in a collective before the run fails."""


class Checkpoint(Section):
    """When training saves itself."""

    every_steps: PositiveInt = 500
    keep: PositiveInt = 2
    """Newest checkpoints kept within a stage; the last one of each stage always stays."""


class Wandb(Section):
    """Weights & Biases; it reads the run's metrics.jsonl in a process of its own and cannot hold up training."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "sparse_mlp_ds"
    entity: str | None = None


class Log(Section):
    """What is written down."""

    every_steps: PositiveInt = 10
    tensorboard: bool = True
    wandb: Wandb = Wandb()


class Recipe(Section):
    """A run: stages in order, each starting from the weights of the one before it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the default run folder, runs/<name>."""
    data: Data
    model: dict[str, Any]
    """`name`: a registered model; every other key overrides a field of its spec."""
    moe: MoE = MoE()
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    @field_validator("model")
    @classmethod
    def _resolve_model(cls, value: dict[str, Any]) -> dict[str, Any]:
        model_spec(value)
        return value

    @model_validator(mode="after")
    def _evaluates_classifiers(self):
        before: Stage | None = None
        for name, stage in self.stages.items():
            if isinstance(stage, Evaluate):
                if before is None:
                    raise ValueError(
                        "the first stage is an evaluate stage, which has no weights; put a training stage first"
                    )
                if not isinstance(before, Supervised):
                    raise ValueError(
                        f"stages.{name} follows a {before.kind} stage; put a finetune or supervised stage before it"
                    )
            else:
                before = stage
        return self

    @property
    def spec(self) -> PatchSpec:
        """The model, with the recipe's overrides applied."""
        return model_spec(self.model)


def model_spec(section: dict[str, Any]) -> PatchSpec:
    """Apply a recipe's `model:` section to the preset it names. Raises ValueError."""
    if not isinstance(section.get("name"), str) or section["name"] not in registry.PRESETS:
        raise ValueError(
            f"name: no model '{section.get('name')}'; {did_you_mean(str(section.get('name')), registry.PRESETS)}"
        )
    preset = registry.PRESETS[section["name"]]
    fields = preset.model_dump()
    for key, value in section.items():
        if key != "name":
            fields[key] = {**fields[key], **value} if isinstance(value, dict) and fields.get(key) else value
    return type(preset).model_validate(fields)
