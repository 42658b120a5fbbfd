"""What the description of a model that an earlier version wrote means today."""

from typing import Any

from sparse_mlp_ds.models.presets import PRESETS

ADDED: dict[str, Any] = {"positions": "sin_cos_swapped"}
"""Keys of a model whose default is not what versions without the key did -> what they did.

`Recipe` writes these keys out, so that a recipe in a checkpoint without them is known to be older."""


def completed(section: dict[str, Any]) -> dict[str, Any]:
    """Return a model's description of any version with the keys of `ADDED` that models of its family have.

    section: a recipe's `model`, or the `spec` of an export, as it was written. What names no known model comes back as
    it is.
    """
    name, family = section.get("name"), section.get("family")
    spec = next((spec for known, spec in PRESETS.items() if known == name or spec.family == family), None)
    fields = () if spec is None else type(spec).model_fields
    return {key: value for key, value in ADDED.items() if key in fields} | section
