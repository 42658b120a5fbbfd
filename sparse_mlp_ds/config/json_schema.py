"""JSON schemas of recipes and of the DeepSpeed JSON: editors complete and check keys by them while one types.

A recipe's file may leave out what its `base` has, at any depth, so the schema requires no key; `train.py --check` finds
what is missing.
"""

from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from sparse_mlp_ds.config import deepspeed_json
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.models.presets import PRESETS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def of_recipes() -> dict[str, Any]:
    """Return the schema of a recipe's YAML file."""
    schema = _relaxed(Recipe.model_json_schema(by_alias=True))
    properties = schema["properties"]
    properties["base"] = {"type": "string", "description": "A shipped recipe's name, or a path: what this one changes."}
    properties["model"] |= {"properties": {"name": {"enum": list(PRESETS)}}}
    stages = properties["stages"]["additionalProperties"]
    # null leaves out a stage of the base.
    properties["stages"]["additionalProperties"] = {"anyOf": [stages, {"type": "null"}]}
    return {"$schema": _DIALECT, **schema, "title": "Recipe of sparse_mlp_ds"}


def of_deepspeed_json() -> dict[str, Any]:
    """Return the schema of the DeepSpeed JSON, with DeepSpeed's own schema of ZeRO and precision."""
    properties: dict[str, Any] = {key: {} for key in sorted(deepspeed_json.ACCEPTED)}
    properties |= {key: {"type": "integer", "minimum": 1} for key in deepspeed_json.BATCH_KEYS}
    properties["gradient_clipping"] = {
        "type": "number",
        "minimum": 0,
        "description": "L2 norm at which gradients are clipped; 0 for none.",
    }
    properties |= {section: _of_section(model) for section, model in deepspeed_json.section_schemas().items()}
    properties["bf16"]["properties"]["enabled"] = {
        "enum": [True, False, "auto"],
        "description": "auto: on GPUs, and float32 on CPUs.",
    }
    return {
        "$schema": _DIALECT,
        "title": "DeepSpeed JSON of sparse_mlp_ds",
        "type": "object",
        "properties": properties,
        "required": ["gradient_clipping"],
        "additionalProperties": False,
    }


def _of_section(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a section, key by key: DeepSpeed's fields hold functions, which pydantic's does not take."""
    properties = {}
    for name, field in model.model_fields.items():
        nested = [part for part in (field.annotation, *get_args(field.annotation)) if _is_section(part)]
        properties[field.alias or name] = _of_section(nested[0]) if nested else _of_value(field.annotation)
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _of_value(annotation: Any) -> dict[str, Any]:
    try:
        return _relaxed(TypeAdapter(annotation).json_schema())
    except PydanticSchemaGenerationError:
        return {}


def _relaxed(node: Any) -> Any:
    """Return a schema that requires no key; a value may then fit several alternatives, so none needs to be the one."""
    if isinstance(node, list):
        return [_relaxed(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in ("required", "discriminator", "oneOf")}
    relaxed = {key: _relaxed(value) for key, value in kept.items()}
    return relaxed | ({"anyOf": _relaxed(node["oneOf"])} if "oneOf" in node else {})
