"""Recipes for text: what fits together, and one line for what does not."""

import pytest

from sparse_mlp_ds.config.loading import changed_key
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import Optimizer

OPTIMIZER = {"base_lr": 1e-3}
TEXT = {"name": "gmlp_text_speeches"}
IMAGES = {"name": "mixer_digits"}
DATA = {"train": "train", "val": "val", "classes": 4}
STAGES = {
    "mlm": {"kind": "mlm", "steps": 10, "batch_size": 8, "optimizer": OPTIMIZER},
    "text": {"kind": "finetune_text", "epochs": 2, "batch_size": 8, "optimizer": OPTIMIZER},
    "span": {"kind": "finetune_span", "epochs": 2, "batch_size": 8, "optimizer": OPTIMIZER},
    "supervised": {"kind": "supervised", "epochs": 2, "batch_size": 8, "optimizer": OPTIMIZER, "view": {}},
    "evaluate": {"kind": "evaluate"},
}


def _recipe(*stages, model=TEXT, data=DATA, log=None, **changes):
    named = {name: STAGES[name] | changes.get(name, {}) for name in stages}
    return Recipe(name="test", data=data, model=model, stages=named, log=log or {})


def test_masked_modelling_then_classes_then_their_evaluation():
    recipe = _recipe("mlm", "text", "evaluate")
    assert recipe.is_text and recipe.stages["text"].label_smoothing == 0
    assert recipe.stages["mlm"].length(100) == 10 and recipe.stages["text"].length(100) == 200
    assert not _recipe("supervised", model=IMAGES).is_text


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        (["supervised"], {}, "stages.supervised: supervised is for images, and model gmlp_text_speeches takes text"),
        (["mlm"], {"model": IMAGES}, "stages.mlm: mlm is for text, and model mixer_digits takes images"),
        (["mlm"], {"data": DATA | {"mean": [0.1, 0.2, 0.3]}}, "data.mean: is for images"),
        (["mlm"], {"data": DATA | {"crop_fraction": 0.9}}, "data.crop_fraction: is for images"),
        (["mlm"], {"data": DATA | {"decoded_gigabytes": 1}}, "data.decoded_gigabytes: is for images"),
        (["mlm"], {"data": DATA | {"probe": "probe"}}, "data.probe: is for images"),
        (["mlm"], {"log": {"routes": True}}, "log.routes: shows images"),
        (["mlm", "evaluate"], {"data": {"train": "train"}}, "data.val: required by stages.evaluate"),
        (["mlm"], {"data": {"train": "t"}, "mlm": {"val_every_steps": 5}}, "data.val: required by stages.mlm"),
        (["mlm", "text"], {"data": {"train": "t", "val": "v"}}, "data.classes: required by stages.text"),
        (["mlm", "span"], {"data": {"train": "t"}}, "data.val: required by stages.span"),
        (["mlm", "span"], {}, "data.classes: stages.span reads questions, whose answers are no classes; remove it"),
        (["text"], {}, "stages.text: a finetune_text stage starts from weights"),
        (["span"], {"data": {"train": "t", "val": "v"}}, "stages.span: a finetune_span stage starts from weights"),
        (["text"], {"text": {"from_scratch": True, "init_from": {"path": "w.npz"}}}, "init_from and from_scratch"),
        (["mlm"], {"mlm": {"steps": None}}, "epochs or steps: one of them is required"),
        (["mlm"], {"mlm": {"epochs": 1}}, "epochs and steps are two lengths"),
        (["mlm"], {"mlm": {"keep_best": True}}, "set val_every_epochs"),
        (["mlm"], {"mlm": {"val_every_epochs": 1, "val_every_steps": 5}}, "say the same thing"),
        (["mlm", "evaluate"], {"evaluate": {"weights": "best"}}, "keeps no best checkpoint"),
        (
            ["mlm"],
            {"mlm": {"optimizer": OPTIMIZER | {"warmup_steps": 5, "warmup_epochs": 1}}},
            "lengths of one warm-up",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(stages, options, message):
    with pytest.raises(ValueError, match="1 validation error") as error:
        _recipe(*stages, **options)
    (line,) = [line for line in str(error.value).splitlines() if "Value error" in line]
    assert message in line


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        (["mlm"], {"data": {"train": "train"}}),  # measures nothing
        (["text"], {"text": {"from_scratch": True}}),
        (["text"], {"text": {"init_from": {"path": "run"}}}),
        (["mlm", "span", "evaluate"], {"data": {"train": "t", "val": "v"}}),
        (["mlm", "evaluate"], {"mlm": {"keep_best": True, "val_every_steps": 5}, "evaluate": {"weights": "best"}}),
    ],
)
def test_what_fits(stages, options):
    _recipe(*stages, **options)


def test_a_warm_up_has_a_length_in_steps_or_in_epochs():
    assert Optimizer(base_lr=1, warmup_epochs=1.5).warmup(10) == 15
    assert Optimizer(base_lr=1, warmup_steps=7).warmup(10) == 7
    assert Optimizer(base_lr=1, warmup_steps=0).warmup(10) == 0


def test_a_recipe_of_a_version_that_counted_epochs_alone_goes_on():
    now = _recipe("supervised", model=IMAGES).model_dump(mode="json")
    before = _recipe("supervised", model=IMAGES).model_dump(mode="json")
    del before["stages"]["supervised"]["steps"], before["stages"]["supervised"]["val_every_steps"]
    del before["stages"]["supervised"]["optimizer"]["warmup_steps"]
    assert changed_key(before, now) is None
    longer = _recipe("supervised", model=IMAGES, supervised={"epochs": None, "steps": 5}).model_dump(mode="json")
    assert "stages.supervised" in changed_key(before, longer)
