"""Recipes that earlier versions wrote mean today what they meant then."""

import json

import pytest

from sparse_mlp_ds.config import history, loading
from tests.helpers import version_0_1_0 as old

WRITTEN = json.loads((old.CHECKPOINT / "manifest.json").read_text())["recipe"]


def test_the_recipe_of_version_0_1_0_is_the_same_run_today():
    now = loading.load_recipe(str(old.FOLDER / "recipe.yaml")).model_dump(mode="json")
    missing = set(loading._flat(now)) - set(loading._flat(WRITTEN))
    assert loading.changed_key(WRITTEN, now) is None, f"of the keys added since: {sorted(missing)}"


def test_what_really_differs_is_named():
    for key, value in [("train.seed", 7), ("stages.train.epochs", 2.0), ("stages.train.batch_size", 48)]:
        now = loading.load_recipe(str(old.FOLDER / "recipe.yaml"), [f"{key}={value}"]).model_dump(mode="json")
        assert str(loading.changed_key(WRITTEN, now)).startswith(f"{key} was ")


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setattr(history, "ADDED", {"stages.*.view.flip": 0.25, "moe.nothing.there": 1, "train.seed": 9})


def test_a_key_that_was_absent_counts_as_what_the_version_did(added):
    tree = json.loads(json.dumps(WRITTEN))
    del tree["stages"]["train"]["view"]["flip"]
    completed = history.completed(tree)
    assert completed["stages"]["train"]["view"]["flip"] == 0.25
    assert completed["train"]["seed"] == WRITTEN["train"]["seed"], "what was written stays"
    assert "flip" not in tree["stages"]["train"]["view"], "the argument is not changed"


def test_what_is_no_recipe_comes_back_as_it_is():
    assert history.completed({"name": 3}) == {"name": 3}
