"""The experts' load during training, from the records of a run."""

import json
import re
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.log.meter import ITEMS
from sparse_mlp_ds.routes.record import Load

STRETCHES = 200
"""Most columns of one stage's heat map; records in between are added up."""
_NAME = re.compile(rf"moe/(.+)/{ITEMS}")


def read(metrics: Path, layers: set[str]) -> tuple[Load, ...]:
    """Return the load of the layers during each stage of a run; nothing if an older version wrote the records.

    metrics: the run's metrics.jsonl. layers: Names of the MoE layers that there are. Raises UserError if there are no
    records.
    """
    fix = "train the run further, or give one of its checkpoints instead, without the load during training"
    try:
        lines = metrics.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{metrics}: no records of the run ({error.strerror}); {fix}") from None
    records = [record for record in map(_record, lines) if record]
    if not records:
        raise UserError(f"{metrics}: holds no records of the run; {fix}")
    found: dict[tuple[str, str], list[tuple[int, list[int]]]] = {}
    for record in records:
        for key, counts in record.items():
            name = _NAME.fullmatch(key)
            if name and name[1] in layers and _are_counts(counts):
                found.setdefault((str(record["stage"]), name[1]), []).append((record["step"], counts))
    return tuple(_load(stage, layer, rows) for (stage, layer), rows in found.items())


def _load(stage: str, layer: str, rows: list[tuple[int, list[int]]]) -> Load:
    """Return the load of one stage and layer. rows: [N] step and counts [E] of each record."""
    experts = len(rows[-1][1])
    rows = [row for row in rows if len(row[1]) == experts]
    size = -(-len(rows) // STRETCHES)
    stretches = [rows[start : start + size] for start in range(0, len(rows), size)]
    items = tuple(tuple(map(sum, zip(*(counts for _, counts in one), strict=True))) for one in stretches)
    return Load(stage=stage, layer=layer, steps=tuple(one[-1][0] for one in stretches), items=items)


def _record(line: bytes) -> dict[str, Any]:
    """Return a line as a record; an empty one for a line that a killed process was writing."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) and "stage" in record else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)
