"""A model by its name, with fresh or trained weights."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sparse_mlp_ds import __version__
from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.hub import any_model
from sparse_mlp_ds.hub import tokenizer as tokenizers
from sparse_mlp_ds.hub.any_model import AnyModel
from sparse_mlp_ds.hub.config import ModelConfig, Origin, TextConfig, TextRows, explain
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.hub.text_model import SparseTextModel
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.text_spec import TextSpec


def create_model(
    name: str | None = None,
    *,
    pretrained: str | Path | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    tokenizer: str | Path | None = None,
    **overrides: Any,
) -> AnyModel:
    """Return a model of images or of text, with all of its experts in this process.

    Args:
        name: Name of a registered model, see `sparse-mlp-ds models`; None with `pretrained`, which knows its model.
        pretrained: Where trained weights come from: the folder of an export, a run or a checkpoint, a repository
            OWNER/NAME of the Hugging Face Hub, or `cifar10`, the small model that comes with the package. None
            initialises the weights as the model's paper does.
        num_classes: Outputs of the head; 0 builds none, so that the model returns features [B, C]. With `pretrained`,
            a number unlike the head's replaces it by a new one of zeros. None keeps the head of `pretrained`; without
            it, it means 1000 for images, and for text a masked language model.
        seed: Seed of the initial weights.
        tokenizer: File of the tokenizer of a model of text. `pretrained` usually has one; a new model without one takes
            tokens only, and cannot be saved.
        overrides: Sizes of the model to change, by the keys of a recipe's section `model`, such as `image_size=64`.

    Raises UserError.
    """
    if isinstance(pretrained, bool):
        raise UserError("create_model: pretrained names where weights come from, such as 'cifar10' or a run's folder")
    if pretrained is None:
        return _fresh(name, num_classes, seed, tokenizer, overrides)
    if overrides:
        raise UserError(f"pretrained weights have the sizes that they have; leave out {', '.join(overrides)}")
    model = any_model.from_pretrained(pretrained, tokenizer=tokenizer)
    if name is not None and name != model.config.name:
        raise UserError(f"{pretrained} is a {model.config.name}, not a {name}; leave out the name, or correct it")
    if num_classes is not None and num_classes != len(model.classes):
        model.reset_head(num_classes)
    return model


def _fresh(
    name: str | None, classes: int | None, seed: int, tokenizer: str | Path | None, overrides: dict[str, Any]
) -> AnyModel:
    if name is None:
        raise UserError("create_model: give the name of a model, or where to take `pretrained` weights from")
    try:
        spec = model_spec({"name": name, **overrides})
    except ValidationError as error:
        raise UserError(f"create_model: {name}: {explain(error)}") from None
    except ValueError as error:
        raise UserError(f"create_model: {one_line(error)}") from None
    model: AnyModel
    if isinstance(spec, TextSpec):
        content = None if tokenizer is None else tokenizers.read(Path(tokenizer), None)
        rows = None if content is None else _rows(spec, Tokenizer(Path(str(tokenizer)), content))
        task = "masked" if classes is None else "classes" if classes else "features"
        text = {"task": task, "text": rows, **_described(name, spec, classes or 0)}
        model = SparseTextModel(TextConfig.model_validate(text), tokenizer=content)
    elif tokenizer is not None:
        raise UserError(f"create_model: {name} takes images, which have no tokenizer; leave it out")
    else:
        images = {"data": Pixels(), **_described(name, spec, 1000 if classes is None else classes)}
        model = SparseVisionModel(ModelConfig.model_validate(images))
    init_weights(model.backbone, seed)
    return model


def _described(name: str, spec: ModelSpec, classes: int) -> dict[str, Any]:
    """Return the entries of a new model's config that do not depend on what it takes."""
    names = tuple(str(number) for number in range(classes))
    origin = Origin(version=__version__, weights="online")
    return {"name": name, "spec": spec, "moe": MoE(), "classes": names, "origin": origin}


def _rows(spec: TextSpec, tokenizer: Tokenizer) -> TextRows:
    """Return what the rows of a new model of text are. Raises UserError if the tokenizer has more or fewer tokens."""
    if tokenizer.vocabulary != spec.vocabulary:
        raise UserError(
            f"create_model: the tokenizer has {tokenizer.vocabulary} tokens, the model {spec.vocabulary}; give "
            f"vocabulary={tokenizer.vocabulary}"
        )
    rows = {"length": spec.length, "vocabulary": spec.vocabulary}
    return TextRows.model_validate(rows | {"tokenizer": tokenizer.sha256, "special": tokenizer.special})
