"""The recipe as typed sections; `config.load_recipe` reads one.

The recipe owns model, routing, data, objective, optimizer values, schedule and logging; `ds_config` owns ZeRO,
precision, clipping and communication.
"""

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

from sparse_mlp_ds.data.sections import Data
from sparse_mlp_ds.errors import did_you_mean
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.spec import PatchSpec
from sparse_mlp_ds.moe.layer import Routing
from sparse_mlp_ds.section import Section
from sparse_mlp_ds.stages import Evaluate, Stage, Supervised


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

    def routing(self, kind: str, evaluation_capacity: float | None = None, priority: str = "importance") -> Routing:
        """Return how the layers of a mixing type (`moe_s`, `moe_c`) route.

        evaluation_capacity: what deterministic passes keep of an expert's even share, with that priority; None drops
        nothing and leaves the recipe's priority.
        """
        return Routing(
            capacity_factor=self.capacity_factor_s if kind == "moe_s" else self.capacity_factor_c,
            priority=priority if evaluation_capacity else self.priority,
            evaluation_capacity=evaluation_capacity,
            group_images=self.group_images,
            noise=self.noise,
            renormalize=self.renormalize,
            balance=self.balance,
            balance_weight=self.balance_weight,
            z_weight=self.z_weight,
        )


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
    keep_every: PositiveInt | None = None
    """Keep those of every so many steps as well."""


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
