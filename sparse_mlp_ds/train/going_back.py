"""What is done about a loss spike: it is told with the batch that it came with, and undone if the recipe says so.

PaLM (arXiv 2204.02311, section 5.1) restarted from a checkpoint before a spike and left out the batches around it. Only
checkpoints of regular steps are gone back to, so a run that was stopped on the way does the same as one that was not.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.distributed import comm
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.loss_spikes import Spike
from sparse_mlp_ds.train.progress import Progress
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.train.training import Run, Training
from sparse_mlp_ds.watchdog.events import NAME, Events

_SHOWN = 3  # keys in the warning


def goes_back(run: Run, training: Training) -> bool:
    """Look for spikes if a record or a checkpoint is due, and return whether the run has gone back before one.

    Then the stage's engine is released, and it has to be started again. Collective.
    """
    folder, settings = run.folder, run.job.recipe.train.loss_spike
    done = folder.progress.stage_step
    if not (training.recorder.is_due(done) or done % run.job.recipe.checkpoint.every_steps == 0):
        return False
    if settings is None or not (spikes := training.spikes.find()):
        return False
    if run.events:
        _tell(run.job, folder.progress, spikes, run.events)
    if len(folder.progress.passed_over) >= settings.go_back:
        return False
    run.watch.at("save")
    run.saver.look(wait=True)  # the checkpoint to go back to may not be on disk yet
    start = comm.on_rank_zero(lambda: _newest_before(folder, spikes[0].step))
    if start is None:
        return False
    training.recorder.close()
    training.close()
    folder.go_back(start, spikes[0].step)
    return True


def _tell(job: Job, progress: Progress, spikes: Sequence[Spike], events: Events) -> None:
    """Warn of spikes, name the samples of the first one's batch, and record all of them."""
    stage, first = progress.stage or "", spikes[0]
    order, index = job.order(stage), join(job.trained_on[stage])
    batch = order.batch_indices(progress.data_step(first.step - 1), 0, job.batches[stage].total)
    located = [index.locate(int(sample)) for sample in batch.samples]
    keys = [f"{shard.name}: {shard.key(position)}" for shard, position in located]
    is_number = math.isfinite(first.loss)
    what = f"is {first.loss:.4g}" if is_number else "is not a number"
    more = f" ({len(spikes)} such steps up to step {spikes[-1].step})" if len(spikes) > 1 else ""
    text = (
        f"loss spike in stage {stage}: the loss of step {first.step} {what}, the median of the steps before it is "
        f"{first.median:.4g}{more}; its batch has {len(keys)} samples: {', '.join(keys[:_SHOWN])}, ..."
    )
    say(f"WARNING: {text} (all in {events.folder / NAME})")
    losses = [asdict(one) | {"loss": one.loss if math.isfinite(one.loss) else None} for one in spikes]
    events.add("loss_spike", text, stage=stage, spikes=losses, samples=keys)


def _newest_before(folder: RunFolder, step: int) -> Checkpoint | None:
    """Return the newest regular checkpoint of the stage with fewer steps taken; None if there is none.

    Checkpoints of a stop on request do not count: a run that never stopped would not have them.
    """
    every = folder.job.recipe.checkpoint.every_steps
    for path in manifest.numbered(folder.checkpoints):
        try:
            progress = manifest.read_manifest(path)["progress"]
            taken = progress.get("stage_step")
            is_of_stage = progress.get("stage") == folder.progress.stage and manifest.is_count(taken)
            if is_of_stage and 0 < taken < step and taken % every == 0:
                return manifest.open_checkpoint(path)
        except UserError as error:
            say(f"WARNING: passed over {error}")
    say("WARNING: there is no checkpoint of this stage from before the spike, so the run goes on")
    return None
