"""The plan of a run as text, printed by `--check` and at the start of every run."""

import shlex
import shutil
from typing import Any

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import FinetuneSpan, Optimizer, Pretrain, TrainingStage
from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.order import TrainingOrder
from sparse_mlp_ds.train.job import Job


def plan(job: Job) -> str:
    """Return the plan: topology, precision, samples, steps and batches of each stage."""
    recipe = job.recipe
    held_out = f", {len(job.val)} held out" if len(job.val) else ""
    spans = any(isinstance(stage, FinetuneSpan) for stage in recipe.stages.values())
    tokens = f" of {job.text.length} tokens" if recipe.is_text else ""
    classes = f", {recipe.data.classes} classes" if recipe.data.classes else "" if spans else ", labels are not read"
    lines = [
        f"recipe {recipe.name}, model {recipe.model['name']}, run folder {job.out}",
        f"ranks {job.world}, ep_size {job.ep_sizes or 'none'}, ZeRO stage {job.ds_config.zero_stage}, "
        f"{job.ds_config.precision}{_why(job)}{', blocks compiled' if job.compiles else ''}",
        f"{job.samples} {sum(len(index) for index in job.train)}{tokens} for training{held_out}{classes}",
    ]
    for name, batch in job.batches.items():
        order = job.order(name)
        part = f", trained on {order.samples} of the {job.samples}" if job.trained_on[name] is not job.train else ""
        negatives = f", {job.negatives(name)} negatives per query" if _is_pretrain(recipe, name) else ""
        lines.append(
            f"stage {name}: {job.steps(name)} steps of {batch.total} {job.samples} = {_per_rank(batch, job.world)} x "
            f"{batch.accumulation} accumulated x {job.world} ranks{part}, {_tail(order, job.samples)}{negatives}"
        )
    if not job.measures_knn and any(_is_pretrain(recipe, name) for name in job.batches):
        lines.append("no k-NN accuracy of features is measured: that takes labelled images, which data.probe may name")
    if url := recipe.checkpoint.mirror:
        lines.append(f"mirror {url}, which holds {job.mirrored.path.name if job.mirrored else 'no checkpoint'}")
    if command := recipe.log.on_event:
        lines.append(f"told of events: {shlex.join(command)}")
    return "\n".join([*lines, *_remarks(job)])


def _remarks(job: Job) -> list[str]:
    """Return a line for each thing that a recipe may say but hardly means."""
    data = job.recipe.data
    remarks = [*sources.remarks(data.sources), *job.remarks]
    for name in job.batches:
        stage = job.stage(name, TrainingStage)
        optimizer, peak = stage.optimizer, stage.optimizer.peak_lr(stage.batch_size)
        if remark := _long_warmup(optimizer, stage, job.order(name).steps_per_epoch):
            remarks.append(f"stage {name}: {remark}, so the learning rate never reaches its peak")
        if optimizer.final_lr > peak:
            remarks.append(
                f"stage {name}: optimizer.final_lr {optimizer.final_lr:g} exceeds the peak learning rate {peak:g} "
                f"(base_lr x batch_size / 256), so the rate rises to the end"
            )
    if (command := job.recipe.log.on_event) and not shutil.which(command[0]):
        remarks.append(f"log.on_event: this host has no program '{command[0]}' that can be run; give its path")
    return [f"WARNING: {remark}" for remark in remarks]


def _long_warmup(optimizer: Optimizer, stage: TrainingStage, steps_per_epoch: int) -> str:
    """Return by which keys a stage's warm-up is longer than the stage; nothing if it is not."""
    if stage.epochs and optimizer.warmup_steps is None:
        if optimizer.warmup_epochs > stage.epochs:
            return f"optimizer.warmup_epochs {optimizer.warmup_epochs:g} exceeds its {stage.epochs:g} epochs"
        return ""
    steps, warmup = stage.length(steps_per_epoch), optimizer.warmup(steps_per_epoch)
    return f"a warm-up of {warmup} steps exceeds its {steps} steps" if warmup > steps else ""


def moved(job: Job, before: dict[str, Any]) -> str:
    """Return how the topology differs from the one that wrote a checkpoint; an empty text if it does not differ."""
    changes = [
        f"{key.replace('_', ' ')} {before[key]} -> {now}"
        for key, now in job.topology.items()
        if before.get(key, now) != now
    ]
    return f", written on another topology: {', '.join(changes)}" if changes else ""


def _why(job: Job) -> str:
    """Return why the run has its precision, where the DeepSpeed JSON leaves it open."""
    if not job.ds_config.auto:
        return ""
    if job.ds_config.precision == ("bf16" if job.gpu else "float32"):
        return f" (auto: on {'GPUs' if job.gpu else 'CPUs'})"
    return " (auto: as the run began)"


def _per_rank(batch: BatchPlan, world: int) -> str:
    least = min(len(batch.share(rank, world)) for rank in range(world))
    return str(batch.micro) if least == batch.micro else f"{least} or {batch.micro}"


def _tail(order: TrainingOrder, samples: str) -> str:
    if order.left_out < 0:
        return f"{-order.left_out} places at the end of each epoch filled from its beginning"
    return f"{order.left_out} {samples} of each epoch fill no batch"


def _is_pretrain(recipe: Recipe, stage: str) -> bool:
    return isinstance(recipe.stages[stage], Pretrain)
