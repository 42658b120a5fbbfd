"""What the registered models cost, read from a file, without torch and without counting (see models/cost.py)."""

import json
from pathlib import Path

FILE = Path(__file__).with_name("preset_costs.json")
"""Name -> `params`, `params_active` and `macs`, as `models.cost.Cost` explains them."""


def read() -> dict[str, dict[str, int]]:
    """Return the costs of all registered models by name."""
    return json.loads(FILE.read_text(encoding="utf-8"))
