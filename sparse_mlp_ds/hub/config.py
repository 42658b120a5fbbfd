"""The config.json of an export: the model as data, how its input is prepared, and where its weights come from."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, ValidationError, field_validator, model_validator

from sparse_mlp_ds.checkpoints.manifest import unique
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.models import history
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.spec import ImageSpec, TextModelSpec
from sparse_mlp_ds.schema import Section

FORMAT: Literal[1] = 1
"""Version of the format of config.json."""
_ORDER = (
    "format", "library_name", "name", "spec", "moe", "task", "classes", "data", "text", "dtype", "origin"
)  # fmt: skip
LARGEST = 1 << 26
"""Most bytes of a config.json; the class names of ImageNet-21k need a hundredth of that."""


class StageSummary(Section):
    """A finished stage of the run that a model comes from."""

    name: str
    """Name of the stage in the recipe."""
    kind: str
    """Kind of the stage in the recipe, such as `pretrain` or `mlm`."""
    steps: NonNegativeInt
    """Optimizer steps that were taken."""
    epochs: float | None = None
    """Epochs that the recipe asks for."""
    batch_size: int | None = None
    """Samples (images or sequences) per optimizer step, over all ranks."""
    optimizer: str | None = None
    """Name of the optimizer."""
    metrics: dict[str, float] = {}
    """What the stage reached, by the names of summary.json."""


class Origin(Section):
    """Where the weights of a model come from."""

    version: str
    """Version of this package that wrote the weights."""
    recipe: str | None = None
    """Name of the recipe."""
    stage: str | None = None
    """Name of the last stage that trained the weights."""
    finished: bool | None = None
    """Whether that stage was trained to its end."""
    step: NonNegativeInt | None = None
    """Optimizer steps of the whole run up to the weights."""
    commit: str | None = None
    """Git commit of the code that trained the weights last, where it ran from a checkout."""
    dirty: bool | None = None
    """Whether that code differed from the commit."""
    data: str | None = None
    """Fingerprint of the training tars of that stage: a SHA-256 over their names and hashes."""
    weights: Literal["online", "averaged", "imported"]
    """`online`: the trained weights. `averaged`: their moving average. `imported`: read from a file of weights."""
    file: str | None = None
    """Name of the file that the weights were imported from."""
    stages: tuple[StageSummary, ...] = ()
    """The stages of the run that were finished."""


class BaseConfig(Section):
    """What config.json holds of every model: all that is needed to build it."""

    format: Literal[1] = FORMAT
    """Version of the format of config.json."""
    library_name: Literal["sparse_mlp_ds"] = "sparse_mlp_ds"
    """Name of this package; the Hugging Face Hub reads it."""
    name: str
    """Name of the registered model that `spec` is derived from."""
    spec: ModelSpec
    """The model as data: its family and all of its sizes."""
    moe: MoE = MoE()
    """How items are routed to experts."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the logits; empty for a model without a head, which returns features."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the weights in the file; routers are always float32."""
    origin: Origin
    """Where the weights come from."""

    @property
    def outputs(self) -> int:
        """Outputs of the model's head; 0 without a head."""
        return len(self.classes)

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not (value.isprintable() and 0 < len(value) < 100):
            raise ValueError("no name")
        return value

    def as_json(self) -> str:
        """Return the text of config.json; the same model always gives the same text."""
        tree = self.model_dump(mode="json", exclude={"moe": {"ep_size"}})
        tree["spec"] = _as_ever(tree["spec"])
        return json.dumps({key: tree[key] for key in _ORDER if key in tree}, indent=1, allow_nan=False) + "\n"


class ModelConfig(BaseConfig):
    """What config.json holds of a model of images."""

    spec: ImageSpec
    """The model as data: its family and all of its sizes."""
    data: Pixels
    """How images are cropped and normalised before the model sees them."""


class TextRows(Section):
    """What the rows of tokens are that a model of text takes."""

    length: int
    """Tokens of a row, n."""
    vocabulary: int
    """Number of different tokens, V."""
    tokenizer: str
    """SHA-256 of tokenizer.model, the file by which texts become tokens."""
    special: dict[str, int]
    """Numbers of the special tokens `pad`, `unk`, `cls`, `sep` and `mask`."""

    @property
    def format(self) -> TextFormat:
        """The same as the rows of a data set have it, one text or pair a row."""
        return TextFormat.from_record(self.model_dump() | {"packing": "texts"})

    @model_validator(mode="after")
    def _possible(self) -> "TextRows":
        try:
            _ = self.format
        except KeyError as error:
            raise ValueError(f"special: no token {error}") from None
        return self


class TextConfig(BaseConfig):
    """What config.json holds of a model of text."""

    spec: TextModelSpec
    """The model as data: its family and all of its sizes."""
    task: Literal["masked", "classes", "spans", "features"]
    """What the model returns: logits over the vocabulary at each token (`masked`), logits of the classes (`classes`),
    two logits at each token, of being an answer's first and last one (`spans`), or features of the row (`features`)."""
    text: TextRows | None = None
    """What the rows are; None for a model that was made without a tokenizer, which cannot be exported."""

    @property
    def outputs(self) -> int:
        """Outputs of the model's head; 0 without a head."""
        return 2 if self.task == "spans" else len(self.classes)

    @model_validator(mode="after")
    def _fits(self) -> "TextConfig":
        if (self.task == "classes") != bool(self.classes):
            raise ValueError(f"task {self.task} with {len(self.classes)} classes")
        for key in ("length", "vocabulary"):
            if self.text and getattr(self.text, key) != (needed := getattr(self.spec, key)):
                raise ValueError(f"text.{key} {getattr(self.text, key)} unlike the model's {needed}")
        return self


AnyConfig = ModelConfig | TextConfig
"""The config of any model."""


def of_images(config: AnyConfig, where: object) -> ModelConfig:
    """Return the config of a model that takes images. Raises UserError if it takes text. where: names the model."""
    if isinstance(config, ModelConfig):
        return config
    raise UserError(f"{where}: {config.name} takes text, and this needs a model of images; give a different model")


def of_text(config: AnyConfig, where: object) -> TextConfig:
    """Return the config of a model that takes text. Raises UserError if it takes images. where: names the model."""
    if isinstance(config, TextConfig):
        return config
    raise UserError(f"{where}: {config.name} takes images, and this needs a model of text; give a different model")


def read(path: Path) -> AnyConfig:
    """Read a config.json. Raises UserError that names what is wrong with it."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        tree = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
        if not isinstance(tree, dict) or tree.get("library_name") != "sparse_mlp_ds":
            raise ValueError("it is not of this package")
        if tree.get("format") != FORMAT:
            raise ValueError(f"format {ascii(tree.get('format'))}, this version reads {FORMAT}")
        if isinstance(tree.get("spec"), dict):
            tree["spec"] = history.completed(tree["spec"])
        if "text" not in tree:
            return ModelConfig.model_validate(tree)
        if tree["text"] is None:
            raise ValueError("text: null")
        return TextConfig.model_validate(tree)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); write the export again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; write the export again") from None
    except (ValueError, RecursionError) as error:
        reason = ascii(one_line(error))[1:-1]
        raise UserError(f"{path}: not the config of a model ({reason}); write the export again") from None


def _as_ever(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec as versions before 0.2.0 write and read it: keys in their order, and no chunks of one channel."""
    last = ("moe_s", "moe_c", "moe_placement")
    order = dict.fromkeys(["family", "image_size", "patch_size", *(key for key in spec if key not in last), *last])
    return {key: _without_chunks(spec[key]) for key in order if key in spec}


def _without_chunks(value: Any) -> Any:
    experts = isinstance(value, dict) and value.get("chunk") == 1
    return {key: inner for key, inner in value.items() if key != "chunk"} if experts else value


def explain(error: ValidationError) -> str:
    """Return the first error of a failed validation as one printable line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return ascii(f"{where}: {message}" if where else message)[1:-1]


def figures(values: Any) -> dict[str, float]:
    """Return the entries of a mapping that are finite numbers; nothing if `values` is not a mapping."""
    items = values.items() if isinstance(values, dict) else ()
    return {
        str(name): float(value)
        for name, value in items
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
