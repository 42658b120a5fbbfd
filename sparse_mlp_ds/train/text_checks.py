"""Whether a run's data are what its model takes: images, or sequences of the model's length and vocabulary."""

from pathlib import Path

from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import FinetuneSpan, FinetuneText
from sparse_mlp_ds.data import questions, sources
from sparse_mlp_ds.data.cache import is_remote
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.questions import Question
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.text_spec import TextSpec

_PACKED = {
    FinetuneText: ({"documents", "stream", "texts"}, "sequences with a class each, as `shards make text` makes them"),
    FinetuneSpan: ({"spans"}, "questions, as `shards make squad` makes them"),
}
"""Stages that need rows of certain kinds: which, and in words."""


def check(recipe: Recipe, train: list[Index], val: list[Index], where: str) -> None:
    """Raise UserError unless the data are what the model and the stages take.

    Args:
        recipe: The recipe.
        train: The index of each source of training samples.
        val: The index of each source of held-out samples.
        where: The recipe's file, for messages.
    """
    for index in (*train, *val):
        _check_kind(recipe, index)
        sources.check_alike(train[0], index)
    for name, stage in recipe.stages.items():
        for kind, (packings, wanted) in _PACKED.items():
            for index in (*train, *val) if isinstance(stage, kind) else ():
                if index.text and index.text.packing not in packings:
                    raise UserError(
                        f"{where}: stages.{name}: {stage.kind} needs {wanted}; the rows of {index.source} are "
                        f"{index.text.packing}"
                    )
        if isinstance(stage, FinetuneSpan):
            if len(val) > 1:
                raise UserError(f"{where}: data.val: answers are scored on one data set, not {len(val)}; give one")
            load_questions(val[0])


def _check_kind(recipe: Recipe, index: Index) -> None:
    spec, model = recipe.spec, recipe.model["name"]
    if not isinstance(spec, TextSpec):
        if index.text is not None:
            raise UserError(f"data: {index.source} holds text, and model {model} takes images; choose a text model")
        return
    if index.text is None:
        raise UserError(
            f"data: {index.source} holds images, and model {model} takes text; make a text data set with "
            "`sparse-mlp-ds shards make text`"
        )
    for key in ("length", "vocabulary"):
        needed, given = getattr(spec, key), getattr(index.text, key)
        if needed != given:
            raise UserError(
                f"data: {index.source} has {key} {given}, the model {needed}; set model.{key}: {given}, or make the "
                f"data again with `sparse-mlp-ds shards make` and --{key} {needed}"
            )


def load_questions(index: Index) -> list[Question]:
    """Return the questions behind the held-out rows of a data set of `spans`. Raises UserError."""
    if is_remote(index.source):
        raise UserError(f"data.val {index.source}: questions are read from a local folder; copy the data set to one")
    return questions.load(Path(index.source), len(index))
