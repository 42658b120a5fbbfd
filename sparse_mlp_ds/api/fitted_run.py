"""A run folder as Python sees it: results, records, and the trained model."""

import json
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import any_model
from sparse_mlp_ds.hub.any_model import AnyModel
from sparse_mlp_ds.report import run_files


class FittedRun:
    """What a run has left in its folder. Nothing is kept in memory, so a run that goes on is seen as it is now."""

    def __init__(self, folder: str | Path):
        """folder: of the run. Raises UserError if nothing was trained there."""
        self.folder = Path(folder)
        if not (self.folder / run_files.METRICS).is_file() and not (self.folder / "summary.json").is_file():
            raise UserError(f"{self.folder}: not the folder of a run; give the one that a run was told with `out`")

    def __repr__(self) -> str:
        return f"FittedRun('{self.folder}', metrics={self.metrics})"

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """What each finished stage reached, by the stage's name: `run.metrics["evaluate"]["top1"]`."""
        return {stage["name"]: stage["metrics"] for stage in self._summary()}

    def records(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the records of the log steps, one dict each, the oldest first.

        stage: Name of the only stage to return; None returns all, with each stage's result at its end.
        """
        path = self.folder / run_files.METRICS
        records = run_files.lines(path.read_text(encoding="utf-8") if path.exists() else "")
        return [record for record in records if stage is None or record["stage"] == stage]

    def model(self, best: bool = False) -> AnyModel:
        """Return the trained model of images or of text, with all of its experts in this process.

        best: Take the checkpoint with the best validation, which `keep_best` has kept, instead of the newest one.
        Raises UserError.
        """
        return any_model.from_pretrained(self.folder, best=best)

    def _summary(self) -> list[dict[str, Any]]:
        path = self.folder / "summary.json"
        stages: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["stages"] if path.exists() else []
        return stages
