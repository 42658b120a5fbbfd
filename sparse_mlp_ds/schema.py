"""The one base of everything that is read from YAML or JSON: recipes, sweeps, model shapes, exported configurations."""

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of keys. It is frozen, an unknown key is an error, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the section's JSON schema, in which the docstrings of keys describe them."""
        schema = handler(core_schema)
        keys = handler.resolve_ref_schema(schema).get("properties", {})
        for name, field in cls.model_fields.items():
            if (text := descriptions(cls).get(name)) and (key := field.alias or name) in keys:
                keys[key]["description"] = text
        return schema


@cache
def descriptions(section: type[Section]) -> dict[str, str]:
    """Return the docstring of each key of a section that has one.

    They are read from the source when somebody asks. pydantic can do it too, but for each class when that is imported,
    which takes a third of what importing the models takes.
    """
    found: dict[str, str] = {}
    for one in reversed(section.__mro__):
        if issubclass(one, Section) and one is not Section:
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
            assert isinstance(body, ast.ClassDef)
            for key, text in pairwise(body.body):
                if not (isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)):
                    continue
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    found[key.target.id] = inspect.cleandoc(str(text.value.value))
    return found
