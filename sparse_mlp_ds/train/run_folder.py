"""The run folder: the files that a run writes beside its checkpoints, and the checkpoint that it continues from."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints import best, manifest, mirror, mirror_fetch, model_weights
from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.mirror import Mirror, MirrorError, unreachable
from sparse_mlp_ds.config import loading, yaml_file
from sparse_mlp_ds.config.stages import FinetuneSpan, MaskedLM, Pretrain
from sparse_mlp_ds.data import class_names
from sparse_mlp_ds.data.class_names import ClassList
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import UserError, of_system
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train import run_tokenizer
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.progress import Progress

LOCK = ".running"
CLAIM_SECONDS = 20.0
"""Time that the previous run has to end and free the folder, where a run is started again at once."""


def check(job: Job) -> None:
    """Raise UserError if the run folder belongs to a different run or --resume names no checkpoint. Writes nothing."""
    files.check_writable(job.out, "--out")
    if job.out.exists():
        files.check_writable(job.out / "checkpoints", "--out")
    _check_mirror(job)
    if job.resume == "never":
        return
    start = manifest.start_of(job.out / "checkpoints", job.resume)
    config = job.out / "config.yaml"
    if start is None and config.exists() and any(manifest.numbered(job.out / "checkpoints")):  # all are damaged
        start = config
    if start is None:
        return
    checkpoint = None if start == config else Checkpoint(start, manifest.read_manifest(start))
    begun = _begun(checkpoint) if checkpoint else None
    if changed := loading.changed_key(_recipe_of(start), _tree(job), begun):
        fix = "give the new run its own --out, or start over with --resume never"
        if job.resume != "auto":
            fix = "go on with the recipe that wrote it"
        weights = "; a stage's init_from starts a new run from these weights" if checkpoint else ""
        raise UserError(f"{start}: {changed}; {fix}{weights}")
    if checkpoint:
        _check_classes(job, checkpoint)


def _check_mirror(job: Job) -> None:
    """Raise UserError if the recipe's mirror holds a different run, or an earlier one of a run that starts over."""
    if job.mirrored is None:
        return
    where = f"checkpoint.mirror {job.recipe.checkpoint.mirror}"
    fix = "give this run a checkpoint.mirror of its own"
    if job.resume == "never":
        raise UserError(f"{where}: holds {job.mirrored.path.name} of an earlier run, which --resume never keeps; {fix}")
    if changed := loading.changed_key(job.mirrored.manifest["recipe"], _tree(job), _begun(job.mirrored)):
        raise UserError(f"{where}: holds {job.mirrored.path.name} of a different run ({changed}); {fix}")
    if job.resume == "auto" and mirror.is_newer(job.mirrored, job.out / "checkpoints"):
        _check_classes(job, job.mirrored)


def _begun(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the stages that had begun when a checkpoint was written."""
    names = [checkpoint.progress.get("stage"), *(entry.get("name") for entry in model_weights.done(checkpoint))]
    return [name for name in names if isinstance(name, str)]


def _check_classes(job: Job, checkpoint: Checkpoint) -> None:
    """Raise UserError if a checkpoint's labels were of different classes than those of the shards are now."""
    start, names, begun = checkpoint.path, checkpoint.manifest.get("classes"), _begun(checkpoint)
    unlabelled = Pretrain | MaskedLM | FinetuneSpan
    learnt = any(name in begun and not isinstance(stage, unlabelled) for name, stage in job.recipe.stages.items())
    if not (learnt and isinstance(names, list)):
        return
    limit = f"data.classes is {len(job.classes)}"
    before = ClassList(str(start), [str(name) for name in names][: len(job.classes)])
    class_names.agree([before, ClassList("data.train", job.classes)], len(job.classes), limit)


def _recipe_of(start: Path) -> dict[str, Any]:
    """Return the resolved recipe that a checkpoint, or else a run's config.yaml, was written with. Raises UserError."""
    if start.name == "config.yaml":
        return yaml_file.read(start, "--out", "resolved recipe")
    return manifest.read_manifest(start)["recipe"]


class RunFolder:
    """A run's folder. Every rank opens it; only rank 0 writes."""

    def __init__(self, job: Job):
        """Find the checkpoint to continue from and write the resolved configuration. Collective."""
        self.job, self.path, self.checkpoints = job, job.out, job.out / "checkpoints"
        self._untold: dict[str, str] = {}  # texts that could not be written yet, by the file's name
        self.start = comm.on_rank_zero(self._prepare)
        self.progress = Progress.of(self.start) if self.start else Progress()
        self._take_up_again()

    def _prepare(self) -> Checkpoint | None:
        try:
            return self._open()
        except OSError as error:
            raise of_system(error, self.path, "give a run folder that can be written with --out") from None

    def _open(self) -> Checkpoint | None:
        job = self.job
        self._claim()
        if job.resume == "never":
            self._set_aside()
        found = self._find_checkpoint()
        if found:
            progress = Progress.of(found)
            in_the_middle = not (progress.stage and progress.is_done(progress.stage))
            if in_the_middle and progress.data not in ("", job.data_fingerprint):
                raise UserError(
                    f"{found.path}: data.train has different tars now than when it was written, so the order of "
                    "images cannot go on; "
                    "bring them back, or start over with --resume never"
                )
            self._check_negatives(found, progress)
            self._warn_of_mended_objective(found, progress)
            self._set_later_aside(found)
            self._look_for_the_best(found)
        files.replace(self.path / "config.yaml", yaml.safe_dump(_tree(job), sort_keys=False))
        files.replace(self.path / "ds_config.json", json.dumps(job.ds_config.raw, indent=2))
        run_tokenizer.keep(job, self.path)
        return found

    def _claim(self) -> None:
        """Lock the folder for this run. Raises UserError naming the run that holds the lock."""
        self.path.mkdir(parents=True, exist_ok=True)
        mine = f"process {os.getpid()} on {socket.gethostname()}"
        self._held = files.claim(self.path / LOCK, mine, CLAIM_SECONDS)
        if isinstance(self._held, str):
            raise UserError(f"{self.path}: another run writes there ({self._held}); wait for it, or give --out")

    def _check_negatives(self, found: Checkpoint, progress: Progress) -> None:
        """Refuse to go on with a stage whose objective would change with the number of ranks or micro-batches."""
        if progress.stage not in self.job.batches or progress.is_done(progress.stage):
            return
        if progress.negatives != (now := self.job.negatives(progress.stage)):
            raise UserError(
                f"{found.path}: each query of stages.{progress.stage} had {progress.negatives} negatives and would now "
                f"have {now}; go on with as many images per micro-batch as before"
            )

    def _look_for_the_best(self, found: Checkpoint) -> Checkpoint:
        """Let a stage that goes on from a checkpoint forget its best validation if that one's is not in this folder.

        It may have been replaced by a better one that is later than the checkpoint. Returns the checkpoint, changed.
        """
        name = found.progress.get("best", {}).get("checkpoint")
        if name is not None and not manifest.is_readable(self.checkpoints / f"step_{found.progress['best']['step']}"):
            text = f"the best checkpoint, {name}, is not there; the next validation is the best"
            say(f"WARNING: {self.checkpoints}: {text}")
            found.manifest["progress"] = found.progress | {"best": {}}
        best.name_it(self.checkpoints, found.progress)
        return found

    def _take_up_again(self) -> None:
        """Go on with a stage that `train.max_steps` ended early, if it may be longer now."""
        for entry in list(self.progress.done):
            name, steps = entry["name"], entry.get("steps")
            if entry.get("ended_by") == "stop_after":
                continue
            if name not in self.job.batches or not manifest.is_count(steps) or steps >= self.job.last_step(name):
                continue
            text = f"stage {name} had ended after {steps} steps and may take {self.job.last_step(name)} now: "
            if name == self.progress.stage:
                self.progress.reopen(name)
                text += "it goes on"
            else:
                text += "it stays as it is, since later stages started from it; --resume never starts over"
            if process_group.rank() == 0:
                say(text)

    def _warn_of_mended_objective(self, found: Checkpoint, progress: Progress) -> None:
        """Say that a pretraining stage of version 0.1.0 goes on with a different objective than it began with."""
        stage = self.job.recipe.stages.get(progress.stage or "")
        begun = isinstance(stage, Pretrain) and not progress.is_done(progress.stage or "")
        if begun and found.manifest.get("version") == "0.1.0":
            say(
                f"WARNING: stage {progress.stage} was begun by version 0.1.0, whose MoCo v3 normalised both views "
                "together in the heads; it goes on as the reference does, each view by itself"
            )

    def write(self, name: str, record: Any, indent: int | None = None) -> None:
        """Write a JSON file into the run folder; a reader sees all of it or none of it. indent: of nested values."""
        self._tell(name, json.dumps(record, indent=indent))

    def write_summary(self) -> dict[str, Any]:
        """Write summary.json with the stages that are finished, and return its content."""
        job = self.job
        sizes = sorted(set(job.ep_sizes.values()), reverse=True) or [1]
        summary = {
            "recipe": job.recipe.name,
            "world_size": job.world,
            "ep_size": sizes[0] if len(sizes) == 1 else job.ep_sizes,
            "zero_stage": job.ds_config.zero_stage,
            "stages": self.progress.done,
        }
        self._tell("summary.json", json.dumps(summary, indent=1))
        return summary

    def _tell(self, name: str, text: str) -> None:
        """Write a file that only tells how the run went; if that fails, it costs a warning and is tried again later."""
        if process_group.rank() == 0:
            self._untold[name] = text
            for waiting in list(self._untold):
                try:
                    files.replace(self.path / waiting, self._untold[waiting])
                    del self._untold[waiting]
                except OSError as error:
                    say(f"WARNING: {self.path / waiting}: {error.strerror}; it was not written, training goes on")

    def _find_checkpoint(self) -> Checkpoint | None:
        if self.job.resume not in ("auto", "never"):
            return manifest.open_checkpoint(Path(self.job.resume))
        found, passed_over = manifest.newest(self.checkpoints)
        for text in passed_over:
            say(f"WARNING: passed over {text}")
        return self._fetch(manifest.age(found.path)[0] if found else -1) or found

    def _fetch(self, than: int) -> Checkpoint | None:
        """Bring the newest checkpoint from the recipe's mirror, if there is one with more steps than `than`."""
        if (url := self.job.recipe.checkpoint.mirror) is None:
            return None
        try:
            found, passed_over = mirror_fetch.fetch(
                Mirror(url), self.path, than, self.job.recipe.checkpoint.keep, self._previous
            )
        except MirrorError as error:
            raise unreachable(url, error) from None
        for text in passed_over:
            say(f"WARNING: passed over {text}")
        if found:
            say(f"{found.path} and the files of the run beside it were fetched from {url}")
        return found

    def _set_aside(self) -> None:
        """Move an earlier run's files to OUT/previous-N: `--resume never` starts over without deleting anything."""
        old = [p for p in self.path.glob("*") if p.name != LOCK and not p.name.startswith("previous-")]
        if old:
            target = self._previous()
            for path in old:
                path.rename(target / path.name)
            say(f"moved the earlier run to {target}")

    def _set_later_aside(self, start: Checkpoint) -> None:
        """Move checkpoints that are newer than the one to continue from to OUT/previous-N.

        Left where they are, `--resume auto` would return to them, and the next save would count as older than they are.
        """
        if self.job.resume != "auto":
            self._move_later_aside(start)

    def _move_later_aside(self, start: Checkpoint) -> None:
        later = [path for path in manifest.numbered(self.checkpoints) if manifest.age(path) > manifest.age(start.path)]
        if later:
            target = self._previous() / "checkpoints"
            target.mkdir()
            for path in later:
                path.rename(target / path.name)
            say(f"moved {len(later)} later checkpoints to {target}")

    def go_back(self, start: Checkpoint, spike: int) -> None:
        """Go on from an earlier checkpoint of the stage, and pass over the data from there to a loss spike. Collective.

        Later checkpoints are moved to OUT/previous-N. spike: steps of the stage taken with the spike.
        """
        passed_over = self.progress.passed_over
        self.start = comm.on_rank_zero(lambda: self._look_for_the_best(start))
        self.progress = Progress.of(self.start)
        taken = self.progress.stage_step
        self.progress.passed_over = [*passed_over, [taken, spike - taken]]
        if process_group.rank() == 0:
            say(f"going back to {start.path}; the batches of steps {taken + 1} to {spike} are passed over from now on")
            self._move_later_aside(start)

    def _previous(self) -> Path:
        """Make the next free folder OUT/previous-N."""
        number = 1
        while (target := self.path / f"previous-{number}").exists():
            number += 1
        target.mkdir()
        return target


def _tree(job: Job) -> dict[str, Any]:
    return job.recipe.model_dump(mode="json")
