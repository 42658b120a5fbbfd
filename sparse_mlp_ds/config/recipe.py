"""The recipe as typed sections; `config.loading.load_recipe` reads one.

The recipe owns model, routing, data, objective, optimizer values, schedule and logging; the DeepSpeed JSON owns ZeRO,
precision, clipping and communication.
"""

import re
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

from sparse_mlp_ds.config import recipe_checks
from sparse_mlp_ds.config.log import Log
from sparse_mlp_ds.config.stages import Stage
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.errors import did_you_mean
from sparse_mlp_ds.models import history
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.presets import PRESETS
from sparse_mlp_ds.models.text_spec import TextSpec
from sparse_mlp_ds.moe.layer import Routing
from sparse_mlp_ds.schema import Section

RESERVED = ("summary", "ds_config", "environment")
"""Names of JSON files in the run folder, which no stage may bear."""


class MoE(Section):
    """How items are routed to experts, and over how many ranks the experts are spread. The number of experts is set in
    `model`."""

    ep_size: PositiveInt | Literal["auto"] = "auto"
    """Ranks that share one full set of experts; `auto` takes the largest number that divides experts and ranks."""
    group_images: PositiveInt = 8
    """Samples (images or sequences) per routing group, in which capacity and balance are counted. A group stays on one
    rank."""
    capacity_factor_s: PositiveFloat | None = 1.05
    """Slots per expert of MoE_S in training, as a multiple of its even share of the items; null drops nothing."""
    capacity_factor_c: PositiveFloat | None = 1.05
    """Slots per expert of MoE_C in training, as a multiple of its even share of the items; null drops nothing."""
    capacity_multiple: PositiveInt = 1
    """Slots per expert are rounded up to a multiple of this number, in evaluation too; V-MoE's code takes 4."""
    priority: Literal["position", "importance", "random", "expert_choice"] = "position"
    """Which items an expert serves first: by `position`, by gate weight (`importance`: V-MoE's Batch Prioritized
    Routing) or at `random`. With `expert_choice`, the experts choose the items."""
    renormalize: bool = False
    """Divide the gate weights of an item's chosen experts by their sum; the paper does not. With one expert per item
    all weights are then 1, and routers learn from the balance losses alone."""
    renormalize_s: bool | None = None
    """`renormalize` of MoE_S; null takes that of both."""
    renormalize_c: bool | None = None
    """`renormalize` of MoE_C; null takes that of both."""
    gate_scale_s: PositiveFloat = 1.0
    """Factor of the gate weights of MoE_S. Kept weights sum to less than 1, so experts count for less than a dense MLP
    would; a factor above 1 makes up for it."""
    gate_scale_c: PositiveFloat = 1.0
    """Factor of the gate weights of MoE_C."""
    noise: NonNegativeFloat = 1.0
    """Gate noise, in units of the paper's standard deviation 1/N."""
    noise_s: NonNegativeFloat | None = None
    """`noise` of MoE_S; null takes that of both."""
    noise_c: NonNegativeFloat | None = None
    """`noise` of MoE_C; null takes that of both."""
    balance: Literal["importance_load", "switch"] = "importance_load"
    """The paper's losses (`importance_load`), or Switch Transformer's balance loss (`switch`)."""
    balance_weight: NonNegativeFloat = 0.01
    """Weight of the balance losses (lambda in the paper)."""
    z_weight: NonNegativeFloat = 0.0
    """Weight of the router's z-loss; 0 switches it off."""

    @field_validator("ep_size", mode="before", json_schema_input_type=PositiveInt | Literal["auto"])
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"expected a positive integer or auto, not {value!r}")
        return value

    def routing(self, kind: str, evaluation_capacity: float | None = None, priority: str = "importance") -> Routing:
        """Return how the MoE layers of a mixing type route.

        Args:
            kind: the mixing type, `moe_s` or `moe_c`.
            evaluation_capacity: capacity factor of evaluation passes; None drops nothing.
            priority: which items come first where `evaluation_capacity` is given; without it, the recipe's priority
                holds.
        """
        of_channels = kind == "moe_s"
        noise = self.noise_s if of_channels else self.noise_c
        renormalize = self.renormalize_s if of_channels else self.renormalize_c
        return Routing(
            capacity_factor=self.capacity_factor_s if of_channels else self.capacity_factor_c,
            capacity_multiple=self.capacity_multiple,
            priority=priority if evaluation_capacity else self.priority,
            evaluation_capacity=evaluation_capacity,
            group_images=self.group_images,
            noise=self.noise if noise is None else noise,
            renormalize=self.renormalize if renormalize is None else renormalize,
            gate_scale=self.gate_scale_s if of_channels else self.gate_scale_c,
            balance=self.balance,
            balance_weight=self.balance_weight,
            z_weight=self.z_weight,
        )


class LossSpike(Section):
    """When a step's loss counts as a spike, and what is done about it."""

    factor: Annotated[float, Field(gt=1)] = 3.0
    """A step is a spike if its loss exceeds this multiple of the median of the steps before it, or is no number."""
    window: Annotated[int, Field(ge=5)] = 100
    """Number of steps whose median counts; the first steps of a stage, as many as this, are not judged."""
    go_back: NonNegativeInt = 0
    """How many times a stage may go back to its last checkpoint before a spike and pass over the batches from there to
    the spike. A spike after that, or with 0, is only told."""


class Train(Section):
    """Settings of all training stages."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seed of initial weights, data order, augmentation and gate noise."""
    max_steps: PositiveInt | None = None
    """End each training stage after this many optimizer steps; its schedule stays that of the whole stage."""
    max_skipped: NonNegativeInt = 10
    """Steps in a row that may be skipped for gradients that are not finite; one more ends the run."""
    timeout_seconds: PositiveFloat = 600
    """How long a step, a read or another rank may take without progress before the run fails, seconds."""
    loss_spike: LossSpike | None = None
    """Tell spikes of the loss, with the keys of the batch, and optionally go back before them; null does not look."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether models' blocks are compiled by torch.compile: `on`, `off`, or on GPUs only (`auto`)."""

    @field_validator("compile", mode="before")
    @classmethod
    def _as_yaml_reads_it(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class CheckpointSection(Section):
    """When training saves a checkpoint, and which checkpoints stay."""

    every_steps: PositiveInt = 500
    """Optimizer steps of a stage from one checkpoint to the next; the end of a stage is always saved."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay; the last one of each stage stays in any case."""
    keep_every: PositiveInt | None = None
    """Also keep each checkpoint whose step in the run is a multiple of this number."""
    mirror: str | None = None
    """Where finished checkpoints and the files beside them are copied to during training, such as s3://bucket/path, or
    another URL that fsspec opens; a run with an empty run folder goes on from there. null copies nothing."""

    @field_validator("mirror")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-z0-9+]+://.+", value):
            raise ValueError(f"expected a URL such as s3://bucket/path, not {value!r}")
        return value


class Recipe(Section):
    """A recipe: stages that run in order, each from the weights of the stage before."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the recipe; the default run folder is runs/NAME."""
    data: Data
    """Where the samples are, and how they are read."""
    model: dict[str, Any]
    """The model: `name` is a registered model, every further key overrides a field of it."""
    moe: MoE = MoE()
    """How items are routed to experts."""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    """The stages by name, in the order in which they run."""
    train: Train = Train()
    """Settings of all training stages."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When training saves a checkpoint, and which checkpoints stay."""
    log: Log = Log()
    """Which records are written, and where they go."""

    @field_validator("model")
    @classmethod
    def _resolve_model(cls, value: dict[str, Any]) -> dict[str, Any]:
        fields = model_spec(value).model_dump()
        return value | {key: fields[key] for key in history.ADDED if key in fields}

    @field_validator("stages", mode="before", json_schema_input_type=dict[str, Stage])
    @classmethod
    def _names_for_files(cls, value: Any) -> Any:
        """Refuse names that cannot name a file, or would name one that a run writes itself: RUN/NAME.json."""
        for name in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", str(name)):
                raise ValueError(f"stage {str(name)!a}: a name is letters, digits, '_' and '-'; rename the stage")
            if str(name) in RESERVED:
                raise ValueError(f"stage '{name}': the run folder has a {name}.json already; rename the stage")
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> "Recipe":
        recipe_checks.check(self.stages, self.spec, self.data, str(self.model["name"]), self.log.routes)
        return self

    @property
    def is_text(self) -> bool:
        """Whether the samples are sequences of tokens; else they are images."""
        return isinstance(self.spec, TextSpec)

    @property
    def spec(self) -> ModelSpec:
        """The model's shape, with the recipe's overrides applied."""
        return model_spec(self.model)


def model_spec(section: dict[str, Any]) -> ModelSpec:
    """Return the model that a recipe's `model` section describes: a registered one with overrides.

    Raises ValueError.
    """
    if not isinstance(section.get("name"), str) or section["name"] not in PRESETS:
        raise ValueError(f"name: no model '{section.get('name')}'; {did_you_mean(str(section.get('name')), PRESETS)}")
    preset = PRESETS[section["name"]]
    fields = preset.model_dump()
    for key, value in section.items():
        if key != "name":
            fields[key] = {**fields[key], **value} if isinstance(value, dict) and fields.get(key) else value
    return type(preset).model_validate(fields)
