"""Validation in the middle of a training stage: when it is due, which one was the best, and whether the stage ends.

What is measured are all held-out samples with the weights that the stage would hand over, as at its end. Everything
that later steps depend on is in `Progress`, and so in every checkpoint: a run that resumes decides as it would have.
"""

from typing import Any

from sparse_mlp_ds.config.stage_base import TrainingStage, ValidatedStage
from sparse_mlp_ds.train.progress import Progress, compared_by, is_better
from sparse_mlp_ds.train.stage_results import COUNTS


class Validation:
    """The validations of one stage, which may have none."""

    def __init__(self, stage: TrainingStage, steps_per_epoch: int, last_step: int, progress: Progress):
        """Go on from what `progress` holds.

        Args:
            stage: The stage; only a `ValidatedStage` is validated.
            steps_per_epoch: Optimizer steps of an epoch.
            last_step: The stage's last step, which is validated too.
            progress: How far the run is; `best` and `without_gain` are kept there.
        """
        settings = stage if isinstance(stage, ValidatedStage) else None
        self.every_steps = settings.validates_every(steps_per_epoch) if settings else 0
        """Optimizer steps between two validations; 0 without any."""
        self._keeps = settings.keep_best if settings else False
        self._patience = settings.stop_after if settings else None
        self._last_step, self._progress = last_step, progress
        self._bests = [progress.best] if progress.best else []  # those whose saving is not known to have failed
        self._metrics: dict[str, float] = {}
        self._step = -1  # of the stage, at which they were measured

    def is_due(self) -> bool:
        """Say whether the step just taken is validated."""
        done = self._progress.stage_step
        return bool(self.every_steps) and (self._is_regular() or done == self._last_step)

    def take(self, metrics: dict[str, float]) -> None:
        """Note what was measured after the step just taken."""
        self._metrics, self._step = metrics, self._progress.stage_step
        # The end of a stage is compared in `end`: if `train.max_steps` is raised, the stage goes on as if there had
        # been no end.
        if self._is_regular() and self._progress.compare(best := self._described()):
            self._bests.append(best)

    def measured(self) -> dict[str, float]:
        """Return what was measured after the step just taken; nothing if it was not validated."""
        return self._metrics if self._step == self._progress.stage_step else {}

    def figures(self) -> dict[str, float]:
        """Return the entries of a log record: those of `measured` as `val/NAME`, without the number of samples."""
        return {f"val/{name}": value for name, value in self.measured().items() if name not in COUNTS}

    def is_best(self) -> bool:
        """Say whether the step just taken is the best so far and its checkpoint is to be kept."""
        return self._keeps and self._progress.best.get("stage_step") == self._progress.stage_step

    def forget(self, step: int | None) -> None:
        """Go back to the best before, if the checkpoint that could not be written is that of the best.

        step: in the run, of the newest save, if it failed.
        """
        if self._keeps and step is not None:
            self._bests = [best for best in self._bests if best["step"] != step]
            self._progress.best = self._bests[-1] if self._bests else {}

    def reason_to_end(self) -> str:
        """Return why the stage ends after the step just taken, as a line for the user; nothing if it goes on."""
        progress = self._progress
        if not (self._patience and self.measured() and progress.without_gain >= self._patience):
            return ""
        at, best = progress.stage_step, progress.best
        name = compared_by(best)
        figure = {
            "perplexity": f"perplexity {best[name]:.2f}",
            "f1": f"F1 {100 * best[name]:.2f} %",
            "top1": f"top-1 {100 * best[name]:.2f} %",
        }[name]
        return (
            f"{progress.stage} ends at step {at} of {self._last_step} (stop_after): no gain in the last "
            f"{progress.without_gain} validations over {figure} at step {best['stage_step']}"
        )

    def end(self) -> dict[str, Any]:
        """Return what a finished stage's entry says of its validations: the best one, the end of the stage included."""
        if not self.every_steps:
            return {}
        best = self._progress.best
        if not best or is_better(self._metrics, best):
            best = self._described()
        return {"best": best} | ({"ended_by": "stop_after"} if self.reason_to_end() else {})

    def _is_regular(self) -> bool:
        return self._progress.stage_step % self.every_steps == 0

    def _described(self) -> dict[str, Any]:
        progress = self._progress
        about: dict[str, Any] = {"stage": progress.stage, "step": progress.step, "stage_step": progress.stage_step}
        if self._keeps:
            about["checkpoint"] = f"step_{progress.step}"
        return about | {name: value for name, value in self._metrics.items() if name not in COUNTS}
