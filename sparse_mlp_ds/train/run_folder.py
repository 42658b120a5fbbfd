"""The run folder: what a run writes besides checkpoints, and where it continues."""

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds import config, dist, files
from sparse_mlp_ds.checkpoints.manifest import is_count
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train import checkpoint
from sparse_mlp_ds.train.checkpoint import Checkpoint

LOCK = ".running"
CLAIM_SECONDS = 20.0
"""For the run before to end, where it is started again at once."""


@dataclass
class Progress:
    """Where a run stands."""

    stage: str | None = None
    """The training stage that the newest checkpoint belongs to."""
    stage_step: int = 0
    """Optimizer steps taken in it."""
    step: int = 0
    """Optimizer steps taken in the whole run."""
    skipped: int = 0
    """Of those, skipped because gradients were not finite: the optimizer does not count them."""
    seconds: float = 0.0
    """Time spent in the stage."""
    done: list[dict[str, Any]] = field(default_factory=list)
    """Entries of summary.json of the finished stages."""
    measured: dict[str, float] = field(default_factory=dict)
    """What the stage measured before its first step."""

    data: str = ""
    """Fingerprint of the training tars that the stage reads."""
    negatives: int | None = None
    """Other images that each query of a pretraining stage is contrasted with."""
    hands_over_average: bool = False
    """Whether the next stage takes the average of the last one's weights."""

    loss_scale: dict[str, float] = field(default_factory=dict)
    """Of fp16."""
    expert_items: dict[str, list[int]] = field(default_factory=dict)
    """Items that each expert was chosen for in the stage, as of the last record, by MoE layer."""

    def count_items(self, items: dict[str, list[int]]) -> None:
        """Add what each layer's experts were chosen for."""
        for layer, counts in items.items():
            before = self.expert_items.get(layer, [0] * len(counts))
            self.expert_items[layer] = [a + b for a, b in zip(before, counts, strict=True)]

    @classmethod
    def of(cls, found: Checkpoint) -> "Progress":
        """Return where the run of a checkpoint stood. Raises UserError if that cannot be read here."""
        try:
            progress = cls(**found.progress)
        except TypeError:
            progress = None
        if progress is None or not (
            is_count(progress.step) and is_count(progress.stage_step) and progress.has_entries()
        ):
            raise UserError(
                f"{found.path}: damaged, or of another version: its progress cannot be read; use another checkpoint"
            )
        return progress

    def has_entries(self) -> bool:
        """Say whether `done` is a list of stages with names."""
        return isinstance(self.done, list) and all(isinstance(one, dict) and "name" in one for one in self.done)

    def is_done(self, stage: str) -> bool:
        """Say whether a stage is finished."""
        return any(entry["name"] == stage for entry in self.done)


def check(job: Job) -> None:
    """Raise UserError if the run folder holds another run, or the checkpoint to resume is none. Reads only."""
    if job.resume not in ("auto", "never"):
        checkpoint.read_manifest(Path(job.resume))
    previous = job.out / "config.yaml"
    if job.resume == "never" or not previous.exists() or not any((job.out / "checkpoints").glob("step_*")):
        return
    if changed := config.changed_key(yaml.safe_load(previous.read_text()), _tree(job)):
        raise UserError(f"{previous}: {changed}; give the new run its own --out, or start over with --resume never")


class RunFolder:
    """A run's folder, opened on every rank; rank 0 writes."""

    def __init__(self, job: Job):
        """Find where to continue and write the resolved configuration. Collective."""
        self.job, self.path, self.checkpoints = job, job.out, job.out / "checkpoints"
        self.start = dist.on_rank_zero(self._prepare)
        self.progress = Progress.of(self.start) if self.start else Progress()

    def _prepare(self) -> Checkpoint | None:
        job = self.job
        self._claim()
        if job.resume == "never":
            self._set_aside()
        found = self._find_checkpoint()
        if found:
            progress = Progress.of(found)
            if progress.data not in ("", job.data_fingerprint) and not progress.is_done(progress.stage):
                raise UserError(
                    f"{found.path}: data.train has other tars than when it was written, so its order cannot go on; "
                    "bring them back, or start over with --resume never"
                )
            self._check_negatives(found, progress)
        files.replace(self.path / "config.yaml", yaml.safe_dump(_tree(job), sort_keys=False))
        files.replace(self.path / "ds_config.json", json.dumps(job.ds_config, indent=2))
        return found

    def _claim(self) -> None:
        """Keep other runs out of the folder. Raises UserError naming the one that is in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        mine = f"process {os.getpid()} on {socket.gethostname()}"
        self._held = files.claim(self.path / LOCK, mine, CLAIM_SECONDS)
        if isinstance(self._held, str):
            raise UserError(f"{self.path}: another run writes there ({self._held}); wait for it, or give --out")

    def _check_negatives(self, found: Checkpoint, progress: Progress) -> None:
        """Refuse to go on with a stage whose objective another number of ranks or micro-batches would change."""
        if progress.stage not in self.job.batches or progress.is_done(progress.stage):
            return
        if progress.negatives != (now := self.job.negatives(progress.stage)):
            raise UserError(
                f"{found.path}: each query of stages.{progress.stage} had {progress.negatives} negatives and would now "
                f"have {now}; go on with as many images per micro-batch as before"
            )

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file into the run folder, whole or not at all."""
        if dist.rank() == 0:
            files.replace(self.path / name, json.dumps(record))

    def write_summary(self) -> dict[str, Any]:
        """Write and return summary.json as far as the run has come."""
        job = self.job
        sizes = sorted(set(job.ep_sizes.values()), reverse=True) or [1]
        summary = {
            "recipe": job.recipe.name,
            "world_size": job.world,
            "ep_size": sizes[0] if len(sizes) == 1 else job.ep_sizes,
            "zero_stage": job.ds_config.get("zero_optimization", {}).get("stage", 0),
            "stages": self.progress.done,
        }
        if dist.rank() == 0:
            files.replace(self.path / "summary.json", json.dumps(summary, indent=1))
        return summary

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.job.resume not in ("auto", "never"):
            return checkpoint.open_checkpoint(Path(self.job.resume))
        found, passed_over = checkpoint.newest(self.checkpoints)
        for text in passed_over:
            say(f"WARNING: passed over {text}")
        return found

    def _set_aside(self) -> None:
        """Move an earlier run's files to OUT/previous-N: `--resume never` starts over but deletes nothing."""
        old = [p for p in self.path.glob("*") if p.name != LOCK and not p.name.startswith("previous-")]
        if old:
            number = 1 + len(list(self.path.glob("previous-*")))
            target = self.path / f"previous-{number}"
            target.mkdir()
            for path in old:
                path.rename(target / path.name)
            say(f"moved the earlier run to {target}")


def _tree(job: Job) -> dict[str, Any]:
    return job.recipe.model_dump(mode="json")
