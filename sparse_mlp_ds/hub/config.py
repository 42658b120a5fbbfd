"""What an export's config.json says: the model as data, what it wants to see, and where it comes from."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, ValidationError, field_validator

from sparse_mlp_ds.checkpoints.manifest import unique
from sparse_mlp_ds.data.sections import Pixels
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.spec import AnySpec
from sparse_mlp_ds.recipe import MoE
from sparse_mlp_ds.section import Section

FORMAT = 1
LARGEST = 1 << 26
"""Bytes of a config.json; ImageNet-21k's class names need a hundredth of it."""


class Stage(Section):
    """A finished stage, in brief."""

    name: str
    kind: str
    steps: NonNegativeInt
    epochs: float | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    metrics: dict[str, float] = {}
    """As in summary.json."""


class Origin(Section):
    """Where weights come from."""

    version: str
    """Of this package, when they were written."""
    recipe: str | None = None
    stage: str | None = None
    """The stage that was being trained."""
    finished: bool | None = None
    """Whether it was, to its end."""
    step: NonNegativeInt | None = None
    """Optimizer steps of the whole run."""
    weights: Literal["online", "averaged", "imported"]
    """What was trained itself, the average of it, or neither: read from a file."""
    file: str | None = None
    """Name of that file."""
    stages: tuple[Stage, ...] = ()
    """What was finished by then."""


class ModelConfig(Section):
    """config.json."""

    format: Literal[1] = FORMAT
    library_name: Literal["sparse_mlp_ds"] = "sparse_mlp_ds"
    name: str
    """The registered model that `spec` started from."""
    spec: AnySpec
    moe: MoE = MoE()
    """How items are routed."""
    classes: tuple[str, ...] = ()
    """Names, in the order of the logits; none where the model has no head and returns features."""
    data: Pixels
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights in the file, routers aside: they are float32 always."""
    origin: Origin

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not (value.isprintable() and 0 < len(value) < 100):
            raise ValueError("no name")
        return value

    def text(self) -> str:
        """Return what config.json holds. The same model gives the same bytes."""
        tree = self.model_dump(mode="json", exclude={"moe": {"ep_size"}})
        return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def read(path: Path) -> ModelConfig:
    """Read a config.json. Raises UserError naming what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        tree = json.loads(path.read_text(), object_pairs_hook=unique)
        if not isinstance(tree, dict) or tree.get("library_name") != "sparse_mlp_ds":
            raise ValueError("it is not of this package")
        if tree.get("format") != FORMAT:
            raise ValueError(f"format {ascii(tree.get('format'))}, this version reads {FORMAT}")
        return ModelConfig.model_validate(tree)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); write the export again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; write the export again") from None
    except (ValueError, RecursionError) as error:
        said = ascii(" ".join(str(error).split()))[1:-1]
        raise UserError(f"{path}: not a model's ({said}); write the export again") from None


def explain(error: ValidationError) -> str:
    """Return the first of pydantic's errors as one printable line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ascii(f"{where}: {message}" if where else message)[1:-1]


def figures(values: Any) -> dict[str, float]:
    """Return those of a stage's metrics that are finite numbers."""
    found = values.items() if isinstance(values, dict) else ()
    return {
        str(name): float(value)
        for name, value in found
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
