"""Everything a run needs to know, resolved and checked before any process group exists."""

import hashlib
from dataclasses import dataclass
from math import gcd, lcm
from pathlib import Path
from typing import Any

from sparse_mlp_ds import config, dist, ds_config
from sparse_mlp_ds.data import digits, loader, sources
from sparse_mlp_ds.data.index import Index, join
from sparse_mlp_ds.data.order import TrainingOrder
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.recipe import Recipe
from sparse_mlp_ds.stages import Pretrain, TrainingStage
from sparse_mlp_ds.weights import places


@dataclass(frozen=True)
class Job:
    """A checked run."""

    recipe: Recipe
    ds_config: dict[str, Any]
    out: Path
    """The run folder."""
    resume: str
    """`auto`, `never`, or the path of a checkpoint."""
    world: int
    ep_sizes: dict[str, int]
    """Ranks that share one full set of experts, by mixing type (`moe_s`, `moe_c`)."""
    batches: dict[str, Batch]
    """By training stage."""
    train: list[Index]
    """One per source."""
    val: Index

    def order(self, stage: str) -> TrainingOrder:
        """Return a training stage's data order."""
        return sources.training_order(self.recipe.data, self.train, self.batches[stage].total, self.recipe.train.seed)

    @property
    def data_fingerprint(self) -> str:
        """What tells one set of training tars from another."""
        tars = "".join(f"{one.name} {one.sha256}\n" for index in self.train for one in index.shards)
        return hashlib.sha256(tars.encode()).hexdigest()

    def negatives(self, stage: str) -> int | None:
        """Return how many other images each query of a pretraining stage is contrasted with; None for others."""
        found, batch = self.recipe.stages[stage], self.batches.get(stage)
        if not isinstance(found, Pretrain):
            return None
        return batch.total // (1 if found.contrast == "batch" else batch.accumulation) - 1

    def steps(self, stage: str) -> int:
        """Return the optimizer steps of a whole training stage; `train.max_steps` may end it earlier."""
        return max(round(self.recipe.stages[stage].epochs * self.order(stage).steps_per_epoch), 1)


def resolve(
    recipe_name: str, ds_path: str | None, overrides: list[str], out: str | None, resume: str, world: int
) -> Job:
    """Read and check all inputs. Raises UserError with one line per problem."""
    ds = ds_config.load(ds_path)
    recipe = config.load_recipe(recipe_name, overrides)
    source = str(config.recipe_path(recipe_name))
    ep_sizes = _ep_sizes(recipe, world, source)
    batches = {
        name: _batch(recipe, name, stage, ds, str(ds_path), source, world)
        for name, stage in recipe.stages.items()
        if isinstance(stage, TrainingStage)
    }
    if recipe.data.embedded:
        digits.make_for(recipe.data)
    train = sources.open_sources(recipe.data, recipe.data.train)
    val = join(sources.open_sources(recipe.data, recipe.data.val))
    samples = sum(len(index) for index in train)
    for name, batch in batches.items():
        start = recipe.stages[name].init_from
        if start:
            try:
                places.kind(start.path)
            except UserError as error:
                raise UserError(f"{source}: stages.{name}.init_from.path {error}") from None
        if batch.total > samples:
            raise UserError(
                f"{source}: stages.{name}.batch_size {batch.total} exceeds the {samples} images of data.train; lower it"
            )
        stage = recipe.stages[name]
        images = max(batch.micro * len(stage.views), stage.evaluation_batch // world)  # of one batch
        loader.check_shared_memory(recipe.data.workers, dist.ranks_here(), images * 3 * recipe.spec.image_size**2)
    return Job(recipe, ds, Path(out or f"runs/{recipe.name}"), resume, world, ep_sizes, batches, train, val)


def plan(job: Job) -> str:
    """Return the resolved run as text: topology, batches, steps, and one rank's memory for weights and state."""
    recipe = job.recipe
    lines = [
        f"recipe {recipe.name}, model {recipe.model['name']}, run folder {job.out}",
        f"ranks {job.world}, ep_size {job.ep_sizes or 'none'}, ZeRO stage "
        f"{job.ds_config.get('zero_optimization', {}).get('stage', 0)}",
        f"images {sum(len(index) for index in job.train)} for training, {len(job.val)} held out, "
        f"{recipe.data.classes} classes",
    ]
    for name, batch in job.batches.items():
        order = job.order(name)
        negatives = f", {job.negatives(name)} negatives per query" if _is_pretrain(recipe, name) else ""
        lines.append(
            f"stage {name}: {job.steps(name)} steps of {batch.total} images = {_per_rank(batch, job.world)} x "
            f"{batch.accumulation} accumulated x {job.world} ranks, {_tail(order)}{negatives}"
        )
    return "\n".join([*lines, _memory(job)])


def _per_rank(batch: Batch, world: int) -> str:
    least = min(len(batch.share(rank, world)) for rank in range(world))
    return str(batch.micro) if least == batch.micro else f"{least} or {batch.micro}"


def _tail(order: TrainingOrder) -> str:
    if order.left_out < 0:
        return f"{-order.left_out} places at the end of each epoch filled from its beginning"
    return f"{order.left_out} images of each epoch fill no batch"


def _memory(job: Job) -> str:
    """Return one line on the bytes that weights, gradients, float32 masters and two moments take on one rank."""
    import torch

    with torch.device("meta"):
        model = registry.build(job.recipe.spec)
    experts = {"moe_s": 0, "moe_c": 0}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            experts[next(kind for kind in experts if f".{kind}." in name)] += parameter.numel()
    dense = sum(p.numel() for p in model.parameters()) - sum(experts.values())
    low = any(job.ds_config.get(key, {}).get("enabled") for key in ("bf16", "fp16"))
    weight = 2 if low else 4
    stage = job.ds_config.get("zero_optimization", {}).get("stage", 0)
    total = 0.0
    for count, ep in [(dense, 1), *((experts[kind], job.ep_sizes.get(kind, 1)) for kind in experts)]:
        replicas = job.world // ep
        held = count / ep
        masters = 4 * held if low or stage else 0
        state = (masters + 8 * held) / (replicas if stage else 1)
        gradients = weight * held / (replicas if stage == 2 else 1)
        total += weight * held + gradients + state
    momentum = sum(4 * n / job.ep_sizes.get(k, 1) for k, n in experts.items()) + 4 * dense
    pretrain = any(_is_pretrain(job.recipe, name) for name in job.batches)
    text = f"memory per rank: {total / 2**20:.1f} MiB for the backbone's weights, gradients and AdamW state"
    return (
        text + (f", {momentum / 2**20:.1f} MiB for the momentum net" if pretrain else "") + "; activations not counted"
    )


def _is_pretrain(recipe: Recipe, stage: str) -> bool:
    return isinstance(recipe.stages[stage], Pretrain)


def _ep_sizes(recipe: Recipe, world: int, source: str) -> dict[str, int]:
    wanted, sizes = recipe.moe.ep_size, {}
    for kind, moe in recipe.spec.experts.items():
        if wanted == "auto":
            sizes[kind] = gcd(moe.experts, world)
        elif moe.experts % wanted:
            raise UserError(
                f"{source}: moe.ep_size {wanted} does not divide the {moe.experts} experts of model.{kind}; "
                f"set {gcd(wanted, moe.experts)}, or auto"
            )
        elif world % wanted:
            raise UserError(
                f"{source}: moe.ep_size {wanted} does not divide {world} ranks; set {gcd(wanted, world)}, or auto"
            )
        else:
            sizes[kind] = wanted
    return sizes


def _batch(
    recipe: Recipe, name: str, stage: TrainingStage, ds: dict[str, Any], ds_path: str, source: str, world: int
) -> Batch:
    group = recipe.moe.group_images if recipe.spec.experts else 1
    unit = lcm(group, 2 if getattr(stage, "mix", None) else 1)  # mixing pairs images
    return ds_config.batch(ds, ds_path, source, name, stage.batch_size, world, unit)
