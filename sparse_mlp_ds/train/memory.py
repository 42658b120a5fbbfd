"""How much memory a run takes on each rank, estimated before anything is allocated; see docs/gpu.md.

Passes are rehearsed on torch's meta device (`rehearsal`); what DeepSpeed's ZeRO adds follows from its settings. Not
counted: augmentation, which is over before the forward pass begins, and what CUDA, NCCL and fragmentation take.
"""

from dataclasses import dataclass, replace

from sparse_mlp_ds.config.batch import plan_batch
from sparse_mlp_ds.config.stages import Evaluate, Pretrain, Probe, TrainingStage
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.rehearsal import Rehearsal, rehearse

SPARE = 0.1
"""Share of a device that stays free in what is proposed: for CUDA, NCCL and fragmentation."""
_MOMENTS = {"adamw": 8, "lamb": 8, "sgd": 4, "lars": 4}
"""Bytes of optimizer state per parameter."""
_UPDATE = {"adamw": 0, "lamb": 16, "sgd": 0, "lars": 12}
"""Bytes per parameter that an update makes on the way."""
_BUCKET, _LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`, in elements."""
_QUERIES = 1024
"""Images whose neighbours k-NN looks for at a time."""


@dataclass(frozen=True)
class StageMemory:
    """What one stage takes on one rank at most, in bytes, by what it is for."""

    weights: int
    """The trained network's parameters."""
    optimizer: int
    """Float32 masters and moments."""
    companion: int
    """A momentum encoder, a weight average, or a probe's backbone."""
    samples: int
    """Images' crops, or sequences, of a whole step, as they come from the loader."""
    gradients: int
    """ZeRO's bucket, or the gradients themselves, during a backward pass."""
    activations: int
    """What one micro-batch's passes keep."""
    update: int
    """Gradients and intermediate results of the optimizer's step, when the passes are over."""
    evaluation: int
    """What an evaluation during the stage keeps."""

    @property
    def parts(self) -> dict[str, int]:
        """What is alive when the most is, by name."""
        phases = (self._with("samples", "gradients", "activations"), self._with("samples", "update"))
        return max(*phases, self._with("evaluation"), key=_sum)

    @property
    def training(self) -> int:
        """The most bytes that are alive at a time during the stage's steps."""
        return max(_sum(self._with("samples", "gradients", "activations")), _sum(self._with("samples", "update")))

    @property
    def measuring(self) -> int:
        """The most bytes that are alive at a time while the stage measures itself."""
        return _sum(self._with("evaluation"))

    @property
    def peak(self) -> int:
        """The most bytes that are alive at a time."""
        return max(self.training, self.measuring)

    def _with(self, *names: str) -> dict[str, int]:
        """Return what is always alive and the parts called `names`."""
        return {name: getattr(self, name) for name in ("weights", "optimizer", "companion", *names)}

    def text(self) -> str:
        """Return the parts as text, the largest first."""
        parts = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {_size(size)}" for name, size in parts if size >= 2**20)


def estimate(job: Job) -> dict[str, StageMemory]:
    """Return what each stage takes on one rank, by the stage's name."""
    return {name: _stage(job, name, rehearse(job, name)) for name in job.recipe.stages}


def lines(stages: dict[str, StageMemory], limit: int) -> list[str]:
    """Return the estimate as text. limit: bytes of the device."""
    highest = max(stages, key=lambda name: stages[name].peak)
    worst = stages[highest]
    text = (
        f"memory per rank: {_size(worst.peak)} of {_size(limit)} at most, in stage {highest}: {worst.text()}; "
        "estimated, and augmentation not counted"
    )
    if worst.peak <= (1 - SPARE) * limit:
        return [text]
    return [text, f"WARNING: that leaves less than {SPARE:.0%} of the device for the driver and fragmentation"]


def check(job: Job, stages: dict[str, StageMemory], limit: int) -> None:
    """Raise UserError naming the largest micro-batch that fits if a stage cannot fit into `limit` bytes."""
    for name, memory in stages.items():
        if memory.peak > limit:
            raise UserError(
                f"stage {name} needs {_size(memory.peak)} on each rank, the device has {_size(limit)} "
                f"({memory.text()}); {_proposal(job, stages, limit)}"
            )


def _proposal(job: Job, stages: dict[str, StageMemory], limit: int) -> str:
    """Return what to do about stages that do not fit: the largest micro-batch with which all do, if there is one."""
    room = (1 - SPARE) * limit
    largest = max(batch.micro for batch in job.batches.values()) if job.batches else 0
    for micro in range(largest, 0, -1):
        smaller = _with_micro(job, micro)
        if smaller is None or not all(_scaled(job, stages[n], n, micro) <= room for n in smaller.batches):
            continue
        if all(memory.peak <= room for memory in estimate(smaller).values()):
            return f'set "train_micro_batch_size_per_gpu": {micro} in {job.ds_config.path}, the largest that fits'
    return (
        f"no micro-batch fits; lower zero_optimization.reduce_bucket_size in {job.ds_config.path} or the batch_size of "
        "evaluate stages, set model.checkpoint_blocks, or use more ranks or a smaller model"
    )


def _with_micro(job: Job, micro: int) -> Job | None:
    """Return the job with so many images in each micro-batch; None if a stage's batch does not divide."""
    kept = {k: v for k, v in job.ds_config.raw.items() if k != "gradient_accumulation_steps"}
    config = replace(job.ds_config, raw=kept | {"train_micro_batch_size_per_gpu": micro})
    try:
        batches = {
            name: plan_batch(config, "", name, batch.total, job.world, batch.unit)
            for name, batch in job.batches.items()
        }
    except UserError:
        return None
    return replace(job, ds_config=config, batches=batches)


def _scaled(job: Job, memory: StageMemory, name: str, micro: int) -> float:
    """Return a lower bound of a stage's memory with a smaller micro-batch, without a rehearsal."""
    share = min(micro / job.batches[name].micro, 1.0)
    # Half of what grows with the micro-batch is a safe guess of how much of the figure that is.
    return memory.weights + memory.optimizer + memory.companion + share * (memory.activations + memory.gradients) / 2


def _stage(job: Job, name: str, seen: Rehearsal) -> StageMemory:
    stage, ds = job.recipe.stages[name], job.ds_config
    if isinstance(stage, Evaluate):
        return StageMemory(seen.companion, 0, 0, 0, 0, 0, 0, seen.evaluation)
    assert isinstance(stage, TrainingStage)
    batch = job.batches[name]
    elements, width = sum(seen.trained.values()), 4 if ds.precision == "float32" else 2
    weights, optimizer, gradients, update = _zero(job, stage, seen, batch.accumulation > 1)
    if ds.precision != "float32" and job.world > 1 and isinstance(stage, Pretrain):
        update = max(update, 4 * elements)  # float32 masters, put together for the momentum encoder
    return StageMemory(
        weights=weights + width * seen.frozen,
        optimizer=optimizer,
        companion=seen.companion,
        samples=batch.micro * batch.accumulation * job.sample_bytes(stage),
        gradients=gradients,
        activations=seen.training,
        update=update,
        evaluation=seen.evaluation + _neighbours(job, stage),
    )


def _zero(job: Job, trained: TrainingStage, seen: Rehearsal, accumulates: bool) -> tuple[int, int, int, int]:
    """Return bytes of weights, optimizer state, gradients in the backward pass, and of the update."""
    zero, stage = job.ds_config.raw.get("zero_optimization", {}), job.ds_config.zero_stage
    name, elements = trained.optimizer.name, sum(seen.trained.values())
    width = 4 if job.ds_config.precision == "float32" else 2
    own = sum(count // ranks for ranks, count in seen.trained.items())  # parameters whose state is here
    moments = _MOMENTS[name]
    if stage == 0:
        held = 4 * elements * (2 if job.world > 1 else 1)  # DeepSpeed reduces a flat copy
        kept = 4 * elements if accumulates else 0
        return 4 * elements, moments * elements, kept, held + _UPDATE[name] * elements
    state = own * (4 + moments)
    if job.ds_config.offloads_optimizer:  # to the host, where gradients and weights have buffers, too
        state = 0 if job.gpu else state + (4 + width) * own
    elements_of_bucket = int(zero.get("reduce_bucket_size", _BUCKET))
    buffers = 2 if zero.get("overlap_comm", stage == 3) else 1
    if not job.gpu:
        # Memory that is never written to takes no room on a host.
        elements_of_bucket = min(elements_of_bucket, elements)
    bucket = width * elements_of_bucket * buffers
    largest = max((count // ranks for ranks, count in seen.trained.items()), default=0)
    step = (width if width < 4 else 0) * largest + (4 + _UPDATE[name]) * largest
    if stage == 3:
        live = min(elements, int(zero.get("stage3_max_live_parameters", _LIVE)))
        return width * own, state, bucket + width * (live + own), width * own + step
    mid = width * own if elements > elements_of_bucket else 0  # gradients of this rank's own part
    if stage == 1:
        mid = width * elements if accumulates else 0
    return width * elements, state, bucket + mid, max(bucket + width * own, width * own + step)


def _neighbours(job: Job, stage: TrainingStage) -> int:
    """Return the bytes of the features among which k-NN searches: gathered in parts, put together, compared."""
    if not isinstance(stage, Pretrain | Probe):
        return 0
    images = sum(len(index) for index in job.train)
    bank = min(images, stage.knn_images) if isinstance(stage, Pretrain) else images
    features = 4 * bank * job.recipe.spec.width
    return features + max(features, 4 * bank * _QUERIES)


def _sum(parts: dict[str, int]) -> int:
    return sum(parts.values())


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
