"""The records of a run, as metrics.jsonl holds them."""

import json
from pathlib import Path
from typing import Any


def of_steps(run: Path) -> list[dict[str, Any]]:
    """The records of log steps."""
    return [record for record in _all(run) if not _is_result(record)]


def of_results(run: Path) -> list[dict[str, Any]]:
    """The records of what stages reached."""
    return [record for record in _all(run) if _is_result(record)]


def _all(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_result(record: dict[str, Any]) -> bool:
    return any(name.startswith("result/") for name in record)
