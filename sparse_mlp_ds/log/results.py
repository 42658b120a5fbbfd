"""What a stage reached as one record, which metrics.jsonl, TensorBoard and wandb get like that of a log step.

All figures are called `result/NAME`, so that no curve of training is continued by them.
"""

import time
from typing import Any

PREFIX = "result/"
"""What the names of the figures begin with."""


def record(entry: dict[str, Any], step: int) -> dict[str, Any]:
    """Return the record of a finished stage.

    Args:
        entry: What summary.json holds of the stage.
        step: Optimizer steps of the run so far.
    """
    counts = ("steps", "images", "sequences", "seconds")
    figures = {name: entry[name] for name in counts if name in entry} | entry["metrics"]
    if best := entry.get("best"):
        figures |= {f"best_{name}": value for name, value in best.items() if isinstance(value, int | float)}
    named = {PREFIX + name: value for name, value in figures.items()}
    return {"stage": entry["name"], "step": step, **named, "time": time.time()}


def is_result(record: dict[str, Any]) -> bool:
    """Return whether a record says what a stage reached, and not how a step went."""
    return any(name.startswith(PREFIX) for name in record)
