"""Whether the sections of a recipe fit together: each function raises ValueError, which names the key and the fix."""

from collections.abc import Mapping
from typing import get_args

from sparse_mlp_ds.config.stage_base import ValidatedStage
from sparse_mlp_ds.config.stages import (
    Evaluate,
    Finetune,
    FinetuneSpan,
    FinetuneText,
    ImageClassifierStage,
    ImageStage,
    MaskedLM,
    Pretrain,
    Stage,
    TextStage,
)
from sparse_mlp_ds.data.config import Data, Pixels
from sparse_mlp_ds.models.base_spec import ModelSpec
from sparse_mlp_ds.models.text_spec import TextSpec

Stages = Mapping[str, Stage]
TEXT_KINDS, IMAGE_KINDS = (
    tuple(get_args(stage.model_fields["kind"].annotation)[0] for stage in get_args(kinds))
    for kinds in (TextStage, ImageStage)
)
"""Kinds of the stages that train on text, and of those that train on images."""


def check(stages: Stages, spec: ModelSpec, data: Data, model: str, routes: bool) -> None:
    """Raise ValueError unless a recipe's sections fit together.

    Args:
        stages: The stages by name, in order.
        spec: The model.
        data: The data section.
        model: Name of the model.
        routes: Whether the recipe asks for pictures of what the experts do.
    """
    _stages_fit_the_model(stages, spec, model)
    _images_alone(data, spec, routes)
    _evaluates_what_can_be_measured(stages)
    _has_labels(stages, data, routes and bool(spec.experts))
    _starts_from_weights(stages)
    _distills_into_a_second_token(stages, spec, model)


def _stages_fit_the_model(stages: Stages, spec: ModelSpec, model: str) -> None:
    is_text = isinstance(spec, TextSpec)
    for name, stage in stages.items():
        if isinstance(stage, TextStage) and not is_text:
            raise ValueError(
                f"stages.{name}: {stage.kind} is for text, and model {model} takes images; choose a text model, or a "
                f"stage for images: {', '.join(IMAGE_KINDS)}"
            )
        if isinstance(stage, ImageStage) and is_text:
            raise ValueError(
                f"stages.{name}: {stage.kind} is for images, and model {model} takes text; choose a model for images, "
                f"or a stage for text: {', '.join(TEXT_KINDS)}"
            )


def _images_alone(data: Data, spec: ModelSpec, routes: bool) -> None:
    """Only images have pixels, are decoded, have a k-NN accuracy from `data.probe` and pictures of what experts do."""
    if not isinstance(spec, TextSpec):
        return
    if routes:
        raise ValueError("log.routes: shows images, and the model takes text; remove it")
    for key in (*Pixels.model_fields, "probe", "decoded_gigabytes"):
        if getattr(data, key) != Data.model_fields[key].default:
            raise ValueError(f"data.{key}: is for images, and the model takes text; remove it")


def _evaluates_what_can_be_measured(stages: Stages) -> None:
    before: Stage | None = None
    for name, stage in stages.items():
        if not isinstance(stage, Evaluate):
            before = stage
            continue
        if before is None:
            raise ValueError("the first stage is an evaluate stage, which has no weights; put a training stage first")
        if not isinstance(before, ValidatedStage):
            raise ValueError(
                f"stages.{name} follows a {before.kind} stage; put a finetune or supervised stage before it"
            )
        if stage.weights == "best" and not before.keep_best:
            raise ValueError(
                f"stages.{name}.weights: the stage before keeps no best checkpoint; set its keep_best: true"
            )


def _has_labels(stages: Stages, data: Data, routes: bool) -> None:
    """Held-out samples, and classes, are there where they are needed."""
    needs: list[tuple[str, str, str]] = []
    before: Stage | None = None
    for name, stage in stages.items():
        where = f"stages.{name}"
        if isinstance(stage, Evaluate) and isinstance(before, MaskedLM):
            needs.append((where, "val", "measures on held-out text"))
        elif isinstance(stage, MaskedLM):
            if stage.val_every_epochs or stage.val_every_steps:
                needs.append((where, "val", "is validated on held-out text"))
        elif isinstance(stage, FinetuneSpan):
            needs.append((where, "val", "measures on held-out questions"))
            if data.classes is not None:
                raise ValueError(f"data.classes: {where} reads questions, whose answers are no classes; remove it")
        elif not isinstance(stage, Pretrain | Evaluate):
            needs += [(where, key, "reads labels") for key in ("val", "classes")]
        before = before if isinstance(stage, Evaluate) else stage
    needs += [("log.routes", key, "reads labels") for key in ("val", "classes") if routes]
    for where, key, why in needs:
        if getattr(data, key) is None:
            raise ValueError(f"data.{key}: required by {where}, which {why}; add it")


def _starts_from_weights(stages: Stages) -> None:
    for number, (name, stage) in enumerate(stages.items()):
        if isinstance(stage, FinetuneText | FinetuneSpan) and stage.from_scratch:
            if stage.init_from is not None:
                raise ValueError(f"stages.{name}: has init_from and from_scratch: true; remove one of them")
        elif number == 0 and isinstance(stage, Finetune) and stage.init_from is None:
            raise ValueError(
                f"stages.{name}: a finetune stage starts from weights, and there are none before it; set its "
                "init_from, put a training stage before it, or train from scratch with kind: supervised"
            )
        elif number == 0 and isinstance(stage, FinetuneText | FinetuneSpan) and stage.init_from is None:
            raise ValueError(
                f"stages.{name}: a {stage.kind} stage starts from weights, and there are none before it; set its "
                "init_from, put a training stage before it, or set from_scratch: true"
            )


def _distills_into_a_second_token(stages: Stages, spec: ModelSpec, model: str) -> None:
    for name, stage in stages.items():
        distills = isinstance(stage, ImageClassifierStage) and stage.distill is not None
        if distills and not getattr(spec, "distillation_token", False):
            raise ValueError(
                f"stages.{name}.distill: {model} has no second token to learn from the teacher; set "
                "model.distillation_token: true, which ViTs have"
            )
