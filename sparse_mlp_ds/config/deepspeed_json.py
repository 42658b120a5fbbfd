"""The DeepSpeed JSON, checked before any process group exists.

DeepSpeed itself accepts unknown top-level keys in silence (a misspelt `gradient_cliping` trains with the default of
1.0) and finds other mistakes only after every rank has started.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from sparse_mlp_ds.config import overrides
from sparse_mlp_ds.config.named_files import NamedFiles
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
"""Top-level keys that are passed on to DeepSpeed."""
OWNED_BY_RECIPE = {
    "optimizer": "stages.<stage>.optimizer",
    "scheduler": "stages.<stage>.optimizer",
    "wandb": "log.wandb",
    "tensorboard": "log.tensorboard",
    "csv_monitor": "log",
}
"""Top-level keys that are refused, and the recipe's keys that take their place."""
NOT_WITH_ZERO_3: dict[str, Any] = {
    "offload_param": None,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_gradients": False,
}
"""Keys of `zero_optimization` that change where ZeRO-3 keeps weights, which checkpoints would have to follow, and the
only value that each may have."""
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Top-level keys about the batch; `config.batch` derives those that are left out."""
DS_CONFIGS = NamedFiles("DeepSpeed JSON", Path(__file__).with_name("ds_configs"), ".json", "ds_config.json")
"""Those that come with the package; their folder is a link to `ds_configs` in the repository."""

Precision = Literal["float32", "bf16", "fp16"]


@dataclass(frozen=True)
class DeepSpeedJson:
    """A DeepSpeed JSON as a typed record; `load` reads and checks one."""

    raw: dict[str, Any]
    """The JSON itself: given to DeepSpeed, and recorded in the run folder and in checkpoints."""
    path: str = "--ds_config"
    """Name or path of the file as it was given, for error messages."""
    auto: bool = False
    """Whether the file leaves the precision open: `"bf16": {"enabled": "auto"}`, which `raw` has settled."""

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage: 0 (none), 1 (optimizer state is partitioned), 2 (gradients, too) or 3 (parameters, too)."""
        return self.raw.get("zero_optimization", {}).get("stage", 0)

    @property
    def precision(self) -> Precision:
        """The type in which forward and backward passes compute."""
        for name in ("bf16", "fp16"):
            if self.raw.get(name, {}).get("enabled", False):
                return name
        return "float32"

    @property
    def clipping(self) -> float:
        """The L2 norm at which gradients are clipped; 0 if they are not."""
        return self.raw["gradient_clipping"]

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters and optimizer state are in the host's memory."""
        return bool(self.raw.get("zero_optimization", {}).get("offload_optimizer"))

    def settled(self, precision: Precision) -> "DeepSpeedJson":
        """Return the same configuration in a precision, where the file leaves it open and it can be had that way."""
        if not self.auto or precision == "fp16":
            return self
        return replace(self, raw=self.raw | {"bf16": self.raw["bf16"] | {"enabled": precision == "bf16"}})

    def without_clipping(self) -> "DeepSpeedJson":
        """Return the same configuration with clipping switched off."""
        return replace(self, raw=self.raw | {"gradient_clipping": 0.0})


def load(path: str | None, gpu: bool | None = None, changes: Sequence[str] = ()) -> DeepSpeedJson:
    """Read and check a DeepSpeed JSON, a shipped one by name or any by path.

    Args:
        path: name or path.
        gpu: whether the run trains on GPUs, where `"bf16": {"enabled": "auto"}` means true; elsewhere it means false.
            None asks this host.
        changes: KEY=VALUE of keys to change, written with dots.

    Raises UserError with one line per problem.
    """
    if path is None:
        raise UserError("--ds_config is missing; give a shipped name, such as --ds_config moe, or a JSON file's path")
    try:
        text = DS_CONFIGS.path(path, "--ds_config").read_text(encoding="utf-8-sig")
        config = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"--ds_config {path}: {error.strerror}; give a JSON file's path, or a shipped name such as moe")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}; fix it, `python -m json.tool {path}` shows the place")
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object; start from ds_configs/moe.json")
    for change in changes:
        overrides.apply(config, change, "--ds")
    checks = (_unknown_keys, _zero, _scalars, _precision, _nested_sections)
    if problems := [problem for check in checks for problem in check(config)]:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    auto = config.get("bf16", {}).get("enabled") == "auto"
    if auto and gpu is None:
        from sparse_mlp_ds.distributed import process_group  # imports torch, which the command line need not have

        gpu = process_group.on_gpu()
    return DeepSpeedJson(config, path, auto).settled("bf16" if gpu else "float32")


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
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        return [f"zero_optimization.stage: expected 0, 1, 2 or 3, not {stage!r}"]
    if stage != 3:
        return []
    keys = [key for key, value in NOT_WITH_ZERO_3.items() if zero.get(key, value) != value]
    problems = [f"zero_optimization.{key}: not supported with stage 3 here; remove it" for key in keys]
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and offload.get("device") == "nvme":
        problems.append("zero_optimization.offload_optimizer.device: nvme is not supported with stage 3 here; set cpu")
    return problems


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


def _precision(config: dict[str, Any]) -> list[str]:
    """Check that at most one of `bf16` and `fp16` is enabled, and with a ZeRO stage that keeps float32 masters."""
    problems = []
    sections = [name for name in ("bf16", "fp16") if isinstance(config.get(name), dict)]
    for name in sections:
        value, words = config[name].get("enabled", False), ("auto",) if name == "bf16" else ()
        if not isinstance(value, bool) and value not in words:
            allowed = "true, false or auto" if words else "true or false"
            problems.append(f"{name}.enabled: expected {allowed}, not {value!r}")
    enabled = [name for name in sections if config[name].get("enabled") in (True, "auto")]
    zero = config.get("zero_optimization", {})
    if enabled and isinstance(zero, dict) and not zero.get("stage"):
        problems.append(f"{enabled[0]} needs zero_optimization.stage 1, 2 or 3, which keep the float32 masters; set 1")
    if len(sections) == 2 and all(config[name].get("enabled") for name in sections):
        problems.append("bf16 and fp16 are both enabled; keep one")
    return problems


def _nested_sections(config: dict[str, Any]) -> list[str]:
    """Check `zero_optimization`, `bf16` and `fp16` with DeepSpeed's own schemas, which do reject unknown keys."""
    problems = []
    for section, schema in section_schemas().items():
        if isinstance(values := config.get(section), dict):
            known = {"enabled": True} if "enabled" in values else {}  # `_precision` checks that key
            problems += _schema(section, schema, values | known)
        elif section in config and section != "zero_optimization":  # `_zero` checks that one
            problems.append(f'{section}: expected an object such as {{"enabled": true}}')
    return problems


def section_schemas() -> dict[str, type[BaseModel]]:
    """Return DeepSpeed's own schemas of sections of its JSON, by the section's name."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}


def _schema(section: str, schema: type[BaseModel], values: dict[str, Any]) -> list[str]:
    """Check one section with DeepSpeed's schema of it."""
    problems = []
    try:
        schema.model_validate(values)
    except ValidationError as error:
        for e in error.errors():
            key = ".".join(map(str, e["loc"]))
            if (section, key) == ("zero_optimization", "stage"):  # `_zero` checks that key
                continue
            names = [field.alias or name for name, field in schema.model_fields.items()]
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
