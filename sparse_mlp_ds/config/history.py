"""What a resolved recipe of an earlier version means today.

A key that an earlier version did not have counts as that version's behaviour. Mostly that is the key's default, and
then nothing need be written here.
"""

from typing import Any

from pydantic import ValidationError

from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.models import history

ADDED: dict[str, Any] = {}
"""Keys whose default is not what versions without the key did: dotted key (`*` for any stage) -> what they did."""


def completed(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe of any version with all of today's keys. tree: as it was written, for example into a
    checkpoint's manifest. What is no recipe today comes back as it is."""
    old: dict[str, Any] = _copy(tree)
    for key, value in ADDED.items():
        _fill(old, key.split("."), value)
    try:
        old["model"] = history.completed(old["model"])
        return Recipe.model_validate(old).model_dump(mode="json")
    except (ValidationError, KeyError, TypeError, AttributeError):
        return tree


def _fill(node: Any, path: list[str], value: Any) -> None:
    """Set a key that is absent, where the sections around it are there."""
    first, *rest = path
    if not isinstance(node, dict):
        return
    if first == "*":
        for child in node.values():
            _fill(child, rest, value)
    elif not rest:
        node.setdefault(first, value)
    elif first in node:
        _fill(node[first], rest, value)


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, dict) else node
