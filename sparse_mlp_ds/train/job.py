"""A run as it was asked for: recipe, DeepSpeed JSON and data, read and checked before any process group exists."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm
from pathlib import Path
from typing import Any, TypeVar

from sparse_mlp_ds import files
from sparse_mlp_ds.checkpoints import manifest, mirror
from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.config import deepspeed_json, loading
from sparse_mlp_ds.config.batch import BatchPlan, plan_batch
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import FinetuneSpan, MaskedLM, Pretrain, Stage, TrainingStage
from sparse_mlp_ds.data import few_labels, loader_processes, sources
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import Index, join
from sparse_mlp_ds.data.order import TrainingOrder
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.spec import of_images
from sparse_mlp_ds.schema import Section
from sparse_mlp_ds.shards import embedded
from sparse_mlp_ds.train import class_checks, text_checks

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Job:
    """A run whose inputs were all read and checked."""

    recipe: Recipe
    ds_config: DeepSpeedJson
    out: Path
    """The run folder."""
    resume: str
    """`auto`, `never`, or the path of a checkpoint."""
    world: int
    """Number of ranks."""
    ep_sizes: dict[str, int]
    """Number of ranks over which one full set of experts is spread, by mixing type (`moe_s`, `moe_c`)."""
    batches: dict[str, BatchPlan]
    """How each training stage spreads its batch over ranks and micro-batches, by the stage's name."""
    train: list[Index]
    """The index of every source of training samples."""
    val: Index
    """The index of the held-out samples, which may be none if all stages pretrain."""
    classes: list[str]
    """A name for each of `data.classes`, from the training samples; none if labels are not read."""
    remarks: list[str]
    """What the user should know of the data, though the run can begin."""
    trained_on: dict[str, list[Index]]
    """The part of `train` that each training stage is trained on, by the stage's name: all of it without a
    `label_fraction`."""
    gpu: bool = False
    """Whether the ranks train on GPUs."""
    compiles: bool = False
    """Whether models' blocks are compiled, which `compiled.decide` finds out."""
    probe: Index | None = None
    """The index of the labelled images that `data.probe` names."""
    mirrored: Checkpoint | None = None
    """The newest checkpoint in `checkpoint.mirror`, on rank 0 alone; its path is that which it would have in the run
    folder."""

    def order(self, stage: str) -> TrainingOrder:
        """Return a training stage's data order."""
        batch, seed = self.batches[stage].total, self.recipe.train.seed
        return sources.training_order(self.recipe.data, self.trained_on[stage], batch, seed)

    @property
    def data_fingerprint(self) -> str:
        """A digest of the training tars: it differs if any tar, its content or the order of the tars differs."""
        tars = "".join(f"{one.name} {one.sha256}\n" for index in self.train for one in index.shards)
        return files.sha256_of([tars.encode()])

    @property
    def topology(self) -> dict[str, Any]:
        """How the run is spread over ranks, as it is written into a checkpoint's manifest."""
        return {"world_size": self.world, "ep_sizes": self.ep_sizes, "zero_stage": self.ds_config.zero_stage}

    def stage(self, name: str, kind: type[S]) -> S:
        """Return the stage of that name, which is known to be of that kind."""
        stage = self.recipe.stages[name]
        assert isinstance(stage, kind)
        return stage

    @property
    def measures_knn(self) -> bool:
        """Whether there are labelled images from which pretraining stages get their k-NN accuracy."""
        return self.probe is not None or bool(self.recipe.data.classes and self.val)

    @property
    def samples(self) -> str:
        """What the samples are called: `images` or `sequences`."""
        return "sequences" if self.recipe.is_text else "images"

    @property
    def image_size(self) -> int | None:
        """Side of the images, pixels; None for text."""
        return None if self.recipe.is_text else of_images(self.recipe.spec).image_size

    @property
    def text(self) -> TextFormat:
        """What the rows of the training text are; there are none for images."""
        assert self.train[0].text is not None
        return self.train[0].text

    def sample_bytes(self, stage: TrainingStage) -> int:
        """Return the bytes of one sample of a training stage as it comes from the loader."""
        if self.recipe.is_text:
            return 8 * self.text.length
        return max(len(stage.crops), 1) * math.prod(self.recipe.spec.input_shape)

    def evaluation_batch(self, stage: str) -> int:
        """Return the samples per forward pass over all ranks when a training stage measures itself.

        Of a masked language model it is one micro-batch of each rank: what counts are the logits over the vocabulary.
        """
        batch = self.batches[stage]
        is_masked = isinstance(self.recipe.stages[stage], MaskedLM)
        return batch.total // batch.accumulation if is_masked else batch.evaluation

    def trained_before(self, name: str) -> TrainingStage:
        """Return the training stage whose weights the evaluate stage of that name measures."""
        names = list(self.recipe.stages)
        earlier = [self.recipe.stages[other] for other in names[: names.index(name)]]
        return next(stage for stage in reversed(earlier) if isinstance(stage, TrainingStage))

    def data_of(self, stage: Stage | TrainingStage) -> Data:
        """Return the data section with the number of labels that a stage reads: it decides which labels are wrong."""
        match stage:
            case MaskedLM():
                return self.recipe.data.model_copy(update={"classes": None})
            case FinetuneSpan():
                return self.recipe.data.model_copy(update={"classes": self.text.length**2})
        return self.recipe.data

    def negatives(self, stage: str) -> int | None:
        """Return the number of negatives of each query of a pretraining stage; None for a stage of a different kind."""
        settings = self.recipe.stages[stage]
        if not isinstance(settings, Pretrain):
            return None
        batch = self.batches[stage]
        return batch.total // (1 if settings.contrast == "batch" else batch.accumulation) - 1

    def steps(self, stage: str) -> int:
        """Return the number of optimizer steps of a whole training stage; `train.max_steps` may end it earlier."""
        return self.stage(stage, TrainingStage).length(self.order(stage).steps_per_epoch)

    def last_step(self, stage: str) -> int:
        """Return the step at which a training stage ends: its whole length, or `train.max_steps` if that is less."""
        total = self.steps(stage)
        return min(total, self.recipe.train.max_steps or total)


def resolve(
    recipe_name: str,
    ds_path: str | None,
    overrides: list[str],
    out: str | None,
    resume: str,
    world: int,
    gpu: bool | None = None,
    ds_changes: Sequence[str] = (),
) -> Job:
    """Read and check all inputs. Raises UserError with one line per problem.

    Args:
        recipe_name: name or path of the recipe.
        ds_path: name or path of the DeepSpeed JSON.
        overrides: KEY=VALUE of the recipe's keys to change.
        out: the run folder; None takes runs/<recipe>.
        resume: `auto`, `never`, or the path of a checkpoint.
        world: number of ranks.
        gpu: whether the run is one on GPUs; None asks this host.
        ds_changes: KEY=VALUE of the DeepSpeed JSON's keys to change.
    """
    recipe_name, out = files.expand(recipe_name), files.expand(out) if out else None
    resume, ds_path = files.expand(resume), files.expand(ds_path) if ds_path else None
    gpu = process_group.on_gpu() if gpu is None else gpu
    ds = deepspeed_json.load(ds_path, gpu, ds_changes)
    recipe = loading.load_recipe(recipe_name, overrides)
    folder = Path(out or f"runs/{recipe.name}")
    url, checkpoints = recipe.checkpoint.mirror, folder / "checkpoints"
    mirrored = mirror.newest(url, checkpoints) if url and process_group.rank() == 0 else None
    ds = _as_begun(ds, manifest.start_of(checkpoints, resume), mirrored if resume == "auto" else None)
    source = str(loading.RECIPES.path(recipe_name, "--recipe"))
    if ds.zero_stage == 3 and recipe.spec.experts:
        raise UserError(
            f"{ds.path}: zero_optimization.stage: 3 is not for models with experts, such as this recipe's, because "
            "DeepSpeed has none for them; set 2, which partitions optimizer state and gradients"
        )
    ep_sizes = _ep_sizes(recipe, world, source)
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)}
    batches = {name: _batch(recipe, name, stage, ds, source, world) for name, stage in stages.items()}
    if recipe.data.embedded:
        embedded.make_for(recipe.data)
    train = sources.open_sources(recipe.data, recipe.data.train)
    val = sources.open_sources(recipe.data, recipe.data.val or ())
    probe = class_checks.open_probe(recipe)
    text_checks.check(recipe, train, val, source)
    names, remarks = class_checks.names_of(recipe, train, val)
    for name, stage in stages.items():
        remarks += class_checks.check_start(stage, names, f"{source}: stages.{name}")
        remarks += class_checks.check_teacher(stage, names, recipe, f"{source}: stages.{name}")
    trained_on = {name: few_labels.part(train, stage, recipe.train.seed) for name, stage in stages.items()}
    job = Job(
        recipe, ds, folder, resume, world, ep_sizes, batches, train, join(val), names, remarks, trained_on, gpu,
        probe=probe, mirrored=mirrored,
    )  # fmt: skip
    for name, stage in stages.items():
        _check_stage(job, f"{source}: stages.{name}", name, stage)
    return job


def agreed(job: Job) -> Job:
    """Return the run in the precision that rank 0 has for it, who alone has looked at the run's mirror. Collective."""
    if job.recipe.checkpoint.mirror is None:
        return job
    precision, *_ = comm.gather_objects(job.ds_config.precision, process_group.control_group())
    return replace(job, ds_config=job.ds_config.settled(precision))


def _as_begun(ds: DeepSpeedJson, start: Path | None, mirrored: Checkpoint | None) -> DeepSpeedJson:
    """Return a DeepSpeed JSON with the precision of the run that goes on; as it is where none does.

    Args:
        ds: the DeepSpeed JSON.
        start: the checkpoint in the run folder that the run would go on from.
        mirrored: the newest checkpoint in the run's mirror, which comes first if it is newer.
    """
    try:
        if mirrored and (start is None or mirror.is_newer(mirrored, start.parent)):
            found = mirrored.manifest
        else:
            found = manifest.read_manifest(start) if start else {"ds_config": None}
        precision = DeepSpeedJson(found["ds_config"]).precision if found["ds_config"] is not None else None
    except (UserError, KeyError, AttributeError):  # which `run_folder.check` explains
        return ds
    return ds if precision is None else ds.settled(precision)


def _check_stage(job: Job, where: str, name: str, stage: TrainingStage) -> None:
    """Raise UserError if a training stage cannot run on this data or this host. where: file and key, for messages."""
    batch, data, samples = job.batches[name], job.recipe.data, sum(len(index) for index in job.trained_on[name])
    if batch.total > samples:
        part = " that label_fraction leaves" if job.trained_on[name] is not job.train else ""
        raise UserError(
            f"{where}.batch_size {batch.total} exceeds the {samples} {job.samples} of data.train{part}; lower it"
        )
    if job.negatives(name) == 0:
        raise UserError(
            f"{where}: each query would have 0 negatives, so nothing would be learnt; use batches of 2 images or more"
        )
    over_the_step = isinstance(stage, Pretrain) and stage.contrast == "batch" and batch.accumulation > 1
    if over_the_step and job.ds_config.zero_stage == 3:
        # Two backward passes go through the heads, and ZeRO-3 has let go of their weights after the first one.
        raise UserError(
            f"{where}.contrast: micro-batches are not contrasted together under ZeRO-3; set contrast: micro_batch, or "
            f"zero_optimization.stage 2 in {job.ds_config.path}, or use one micro-batch"
        )
    ranks = process_group.local_world_size()
    sample = job.sample_bytes(stage)
    largest = max(batch.micro * sample, job.evaluation_batch(name) // job.world * (sample // max(len(stage.crops), 1)))
    workers = loader_processes.processes(data.workers, ranks)
    if workers:
        loader_processes.check_socket_paths()
    loader_processes.check_shared_memory(workers, ranks, largest)


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


def _batch(recipe: Recipe, name: str, stage: TrainingStage, ds: DeepSpeedJson, source: str, world: int) -> BatchPlan:
    group = recipe.moe.group_images if recipe.spec.experts else 1
    unit = lcm(group, 2 if getattr(stage, "mix", None) else 1)  # mixing pairs images
    return plan_batch(ds, source, name, stage.batch_size, world, unit)
