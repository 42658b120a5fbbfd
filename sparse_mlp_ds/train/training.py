"""What a run is made of, and what one of its training stages is made of while it goes on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sparse_mlp_ds.checkpoints.saver import Saver
from sparse_mlp_ds.config.stages import AnyTrainingStage
from sparse_mlp_ds.data import loader
from sparse_mlp_ds.data.bad_samples import BadSampleCounter
from sparse_mlp_ds.data.order import TrainingOrder
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.log.meter import Meter
from sparse_mlp_ds.log.recorder import Recorder
from sparse_mlp_ds.log.sinks import Sink
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.device_use import DeviceUse
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.loss_spikes import LossSpikes
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.phase_times import PhaseTimes
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.train.skipped_steps import SkippedSteps
from sparse_mlp_ds.train.step_profiler import StepProfiler
from sparse_mlp_ds.train.stop_request import StopRequest
from sparse_mlp_ds.train.validation import Validation
from sparse_mlp_ds.watchdog.client import Watch
from sparse_mlp_ds.watchdog.events import Events


@dataclass(frozen=True)
class Run:
    """A run's services, the same for all of its stages."""

    job: Job
    folder: RunFolder
    saver: Saver
    stop: StopRequest
    watch: Watch
    sinks: list[Sink]
    """Where records go; empty on all ranks but 0."""
    events: Events | None
    """Takes what happens to the run as a whole; None on all ranks but 0."""


@dataclass
class Training:
    """One training stage in progress."""

    name: str
    stage: AnyTrainingStage
    method: Method
    engine: Any
    order: TrainingOrder
    total: int
    """Optimizer steps of the whole stage, which its schedule spans."""
    steps: range
    """The optimizer steps that this process takes; `train.max_steps` may end them before `total`."""
    batches: Iterator[loader.Batch]
    """Micro-batches of this rank, from the very sample where the stage stopped."""
    bad: BadSampleCounter
    meter: Meter
    skipped: SkippedSteps
    spikes: LossSpikes
    profiler: StepProfiler
    recorder: Recorder
    validation: Validation
    device_use: DeviceUse
    phases: PhaseTimes
    """Tells the watchdog where the rank is, and counts the time."""
    started: float
    """Time at which the stage would have begun if it had never stopped, as `time.perf_counter` counts."""
    memory: list[host.KeptMemory] = field(default_factory=list)
    """Filled after the first step, from which on the process should not grow."""

    def close(self) -> None:
        """End the stage's engine, and a profile whose last steps did not come. Collective."""
        self.profiler.close()
        engines.end(self.engine)
