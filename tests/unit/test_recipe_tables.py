"""The tables of keys in docs/recipes.md: every key, as the code describes it, in a cell short enough to read."""

import re
from typing import get_args

import pytest

from docs import recipe_tables
from sparse_mlp_ds.config import stages
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.models.presets import PRESETS
from sparse_mlp_ds.schema import descriptions

LONGEST = 240
PAGE = recipe_tables.PAGE.read_text()


def reachable():
    """Every section that a recipe may hold: below its own keys, the stages of each kind, the models of each family."""
    left = [Recipe, *get_args(get_args(stages.Stage)[0]), *{type(spec) for spec in PRESETS.values()}]
    found = []
    while left:
        section = left.pop()
        if section not in found:
            found.append(section)
            left += [part for field in section.model_fields.values() for part in recipe_tables.sections_in(field)]
    return sorted(found, key=lambda section: section.__name__)


KEYS = [
    (section, key)
    for section in reachable()
    for key in section.model_fields
    if key not in recipe_tables.SELECTORS  # the page has a chapter about each kind and family
]


def test_the_tables_are_up_to_date():
    assert recipe_tables.updated(PAGE) == PAGE, "run `python docs/recipe_tables.py`"


def test_sections_are_found_wherever_they_stand():
    names = {section.__name__ for section in reachable()}
    assert {"Recipe", "Probe", "WideNetSpec", "MoESpec", "Jitter", "Source", "RemoteCache", "Wandb", "Mix"} <= names


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda value: getattr(value, "__name__", value))
def test_a_key_has_a_row_that_makes_sense_alone(section, key):
    text = descriptions(section).get(key)
    assert text, "no docstring"
    text = " ".join(text.split())
    assert text.endswith(".") and len(text) <= LONGEST, text
    if section is Recipe:
        return  # the page has a chapter about each key of the recipe
    rows = [line for line in PAGE.splitlines() if re.match(rf"\| `([a-z_]+\.)?{key}` \|", line)]
    assert any(text in row for row in rows), text


@pytest.mark.parametrize("key", [key for key in Recipe.model_fields if key != "name"])
def test_a_key_of_the_recipe_has_a_chapter(key):
    assert f"## `{key}`\n" in PAGE
