"""Writes the tables of keys in recipes.md from the docstrings of the recipe's sections: `python docs/recipe_tables.py`.

Each table stands between the lines `<!-- keys of CLASS -->` and `<!-- end -->`; what is between them is replaced.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from sparse_mlp_ds.config import recipe, stage_base, stages
from sparse_mlp_ds.data import config as data
from sparse_mlp_ds.models import spec, text_spec
from sparse_mlp_ds.schema import Section, descriptions

PAGE = Path(__file__).with_name("recipes.md")
BLOCK = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SELECTORS = ("kind", "family")
"""Keys that select a section's class; the page itself names their values."""


def updated(page: str) -> str:
    """Return the page with its tables made anew."""
    sections = [_section(name) for _, name, _ in BLOCK.findall(page)]
    return BLOCK.sub(lambda block: block[1] + _table(_section(block[2]), sections) + block[3], page)


def sections_in(field: FieldInfo) -> list[type[Section]]:
    """Return the section classes in a field's type, such as View in `tuple[View, View]`."""
    return [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, Section)]


def _section(name: str) -> type[Section]:
    modules = (recipe, stages, stage_base, data, spec, text_spec)
    return next(getattr(module, name) for module in modules if hasattr(module, name))


def _table(section: type[Section], sections: list[type[Section]]) -> str:
    """Return a section's docstring and its keys, without the keys that the table of a parent class has."""
    inherited = {key for parent in section.__mro__[1:] if parent in sections for key in parent.model_fields}
    rows = [f"{_line(section.__doc__)}\n", "| key | default | meaning |", "|---|---|---|"]
    for key in section.model_fields:
        if key not in inherited:
            rows += _rows(section, key, sections)
    return "\n".join([*rows, ""])


def _rows(owner: type[Section], key: str, sections: list[type[Section]], before: str = "") -> Iterator[str]:
    """Yield the row of a key, and a row `key.inner` for each key of a section that has no table of its own."""
    if (name := f"{before}{key}") in SELECTORS:
        return
    field = owner.model_fields[key]
    yield f"| `{name}` | {_default(field)} | {_meaning(descriptions(owner)[key], field)} |"
    for section in sections_in(field):
        if section not in sections:
            for inner in section.model_fields:
                yield from _rows(section, inner, sections, f"{name}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "" if isinstance(field.default, Section) else f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """Return a value as a recipe would write it, with at most four digits."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _meaning(text: str, field: FieldInfo) -> str:
    """Return a key's docstring, and its values where it takes only certain ones and the docstring does not name all."""
    text, parts = _line(text).replace("|", r"\|"), list(_parts(field.annotation))
    values = [f"`{value}`" for part in parts if get_origin(part) is Literal for value in get_args(part)]
    takes_others = any(isinstance(part, type) and part is not NoneType for part in parts)
    return text if takes_others or all(value in text for value in values) else f"{text} Values: {', '.join(values)}."


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and the types inside its unions, tuples and constraints."""
    yield annotation
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated):
        for part in get_args(annotation):
            yield from _parts(part)


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
