"""The DeepSpeed JSON, checked before any process group exists, and the batch arithmetic that joins it to a recipe.

DeepSpeed itself accepts unknown top-level keys in silence (a misspelt `gradient_cliping` trains with the default of
1.0) and finds other mistakes only after every rank has started.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError, did_you_mean

ACCEPTED = {
    "bf16",
    "comms_logger",
    "communication_data_type",
    "dump_state",
    "flops_profiler",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "gradient_predivide_factor",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "wall_clock_breakdown",
    "zero_optimization",
}
OWNED_BY_RECIPE = {
    "optimizer": "stages.<stage>.optimizer",
    "scheduler": "stages.<stage>.optimizer",
    "wandb": "log.wandb",
    "tensorboard": "log.tensorboard",
    "csv_monitor": "log",
}
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@dataclass(frozen=True)
class Batch:
    """Images per optimizer step, in turns of equal size that the ranks share as evenly as they can."""

    total: int
    micro: int
    """Images per rank and forward pass; where ranks differ, the most."""
    accumulation: int
    """Turns."""
    unit: int = 1
    """Images that stay together on a rank."""

    @classmethod
    def over(cls, world: int, total: int, accumulation: int = 1, unit: int = 1) -> "Batch":
        """Spread a batch over ranks. Each turn must be whole units, and at least one for every rank."""
        return cls(total, -(-(total // accumulation // unit) // world) * unit, accumulation, unit)

    def share(self, rank: int, world: int) -> range:
        """Return a rank's places of each turn."""
        units = self.total // self.accumulation // self.unit
        return range(units * rank // world * self.unit, units * (rank + 1) // world * self.unit)

    def weight(self, rank: int, world: int) -> float:
        """Return what a rank's mean loss counts for, where gradients are averaged over ranks: 1 if all are alike."""
        return len(self.share(rank, world)) * world * self.accumulation / self.total


def load(path: str | None) -> dict[str, Any]:
    """Read and check a DeepSpeed JSON. Raises UserError with one line per problem."""
    if path is None:
        raise UserError("--ds_config is missing; give a DeepSpeed JSON, for example --ds_config ds_configs/moe.json")
    try:
        text = Path(path).read_text()
        config = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"--ds_config {path}: {error.strerror}; the default is ds_configs/moe.json")
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}; fix it, `python -m json.tool {path}` shows the place")
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object; start from ds_configs/moe.json")
    problems = [*_unknown_keys(config), *_zero(config), *_scalars(config), *_nested_sections(config)]
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def batch(
    config: dict[str, Any], path: str, recipe_file: str, stage: str, total: int, world: int, unit: int = 1
) -> Batch:
    """Derive one stage's batch from the recipe's `batch_size` and whatever the JSON fixes.

    world: number of ranks. unit: images that have to stay together. Where the JSON leaves the images per rank open,
    ranks may have a unit more or less, so that a job that comes back with other hosts goes on. Raises UserError naming
    both files where they conflict or do not multiply out.
    """
    given = {key: config.get(key) for key in BATCH_KEYS}
    owner = f"{recipe_file}: stages.{stage}.batch_size {total}"
    if given["train_batch_size"] not in (None, total):
        raise UserError(
            f"{owner} conflicts with train_batch_size {given['train_batch_size']} in {path}; "
            "remove train_batch_size there, the recipe owns the batch size"
        )
    micro, accumulation = given["train_micro_batch_size_per_gpu"], given["gradient_accumulation_steps"]
    fixed = [f"{key} {value}" for key, value in given.items() if value and key != "train_batch_size"]
    suffix = f" with {' and '.join(fixed)} from {path}" if fixed else f" ({path} fixes no batch size)"
    if micro is None:
        accumulation = accumulation or 1
        units, odd = divmod(total, accumulation * unit)
        if odd or units < world:
            least = accumulation * unit
            nearest = max(round(total / least), world) * least
            why = f", {unit} images staying together (moe.group_images, mix)" if unit > 1 else ""
            raise UserError(
                f"{owner} does not divide over {world} ranks{suffix}{why}; the nearest that does is {nearest}"
            )
        return Batch.over(world, total, accumulation, unit)
    if accumulation is None:
        accumulation = max(total // (world * micro), 1)
    if micro * accumulation * world != total:
        least = world * math.prod(given[key] or 1 for key in BATCH_KEYS[1:])
        nearest = max(round(total / least), 1) * least
        raise UserError(f"{owner} does not divide over {world} ranks{suffix}; the nearest that does is {nearest}")
    if micro % unit:
        raise UserError(
            f"{owner}: train_micro_batch_size_per_gpu {micro} in {path} would part {unit} images that stay together "
            f"(moe.group_images, mix); make it a multiple of {unit}"
        )
    return Batch(total, micro, accumulation, unit)


def _unknown_keys(config: dict[str, Any]) -> list[str]:
    problems = []
    for key in config:
        if key in OWNED_BY_RECIPE:
            problems.append(f"{key}: belongs to the recipe; remove it here and set {OWNED_BY_RECIPE[key]} there")
        elif key == "use_data_before_expert_parallelism":
            problems.append(f"{key}: not supported, experts live on consecutive ranks; remove it")
        elif key not in ACCEPTED:
            problems.append(f"{key}: unknown key; {did_you_mean(key, ACCEPTED)}")
    return problems


def _zero(config: dict[str, Any]) -> list[str]:
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return ['zero_optimization: expected an object such as {"stage": 1}']
    stage = zero.get("stage", 0)
    if stage == 3:
        return [
            "zero_optimization.stage: 3 does not work with experts (DeepSpeed refuses its native MoE there); "
            "set 2, which partitions optimizer state and gradients"
        ]
    return (
        []
        if stage in (0, 1, 2) and not isinstance(stage, bool)
        else [f"zero_optimization.stage: expected 0, 1 or 2, not {stage!r}"]
    )


def _scalars(config: dict[str, Any]) -> list[str]:
    problems = []
    for key in BATCH_KEYS:
        value = config.get(key)
        if key in config and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"{key}: expected a positive integer, not {value!r}; fix it or remove it, it is derived")
    if not isinstance(config.get("steps_per_print", 1), int):
        problems.append("steps_per_print: expected an integer; remove it, log.every_steps of the recipe does the same")
    clip = config.get("gradient_clipping")
    if clip is None:
        problems.append("gradient_clipping: must be given (DeepSpeed would clip at 1.0); set 1.0, or 0.0 for none")
    elif not isinstance(clip, (int, float)) or isinstance(clip, bool) or clip < 0:
        problems.append(f"gradient_clipping: expected a number >= 0, not {clip!r}")
    return problems


def _nested_sections(config: dict[str, Any]) -> list[str]:
    """Check `zero_optimization`, `bf16` and `fp16` with DeepSpeed's own schemas, which do reject unknown keys."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    problems = []
    schemas = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    precisions = [name for name in ("bf16", "fp16") if isinstance(config.get(name), dict)]
    for name in precisions:
        if not isinstance(config[name].get("enabled", False), bool):
            problems.append(f"{name}.enabled: expected true or false, not {config[name]['enabled']!r}")
    low = [name for name in precisions if config[name].get("enabled") is True]
    if low and not (config.get("zero_optimization") or {}).get("stage"):
        problems.append(f"{low[0]} needs zero_optimization.stage 1 or 2, which keep the float32 masters; set 1")
    if len(precisions) == 2 and all(config[name].get("enabled") for name in precisions):
        problems.append("bf16 and fp16 are both enabled; keep one")
    for section, schema in schemas.items():
        if not isinstance(config.get(section), dict):
            if section in config and section != "zero_optimization":
                problems.append(f'{section}: expected an object such as {{"enabled": true}}')
            continue
        try:
            schema.model_validate(config[section])
        except ValidationError as error:
            for e in error.errors():
                key = ".".join(map(str, e["loc"]))
                if (section, key) == ("zero_optimization", "stage"):  # `_zero` has said it
                    continue
                names = [f.alias or n for n, f in schema.model_fields.items()]
                unknown = e["type"] == "extra_forbidden"
                message = f"unknown key; {did_you_mean(key, names)}" if unknown else f"{e['msg']}, not {e['input']!r}"
                problems.append(f"{section}.{key}: {message}")
    return problems


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"key {sorted(repeated)[0]!r} is given twice")
    return dict(pairs)
