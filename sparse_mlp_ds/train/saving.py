"""When a stage's checkpoints are written, and how a run stops on request."""

from collections.abc import Callable

from sparse_mlp_ds.errors import StoppedError
from sparse_mlp_ds.train import saved_state
from sparse_mlp_ds.train.training import Run, Training


def save_or_stop(run: Run, training: Training) -> None:
    """Begin to write a checkpoint where one is due. Raises StoppedError, after saving, if the ranks agreed to stop."""
    run.saver.look()
    training.phases.at("stop")
    done = run.folder.progress.stage_step
    if done == training.steps.stop:  # the end of the stage saves
        return
    if run.stop.agreed():
        save(run, training, run.saver.finish)
        run.stop.done()
        raise StoppedError(f"stopped after step {done} of stage {training.name}")
    if done % run.job.recipe.checkpoint.every_steps == 0 or training.validation.is_best():
        save(run, training, run.saver.start)


def save(run: Run, training: Training, write: Callable[..., None]) -> None:
    """Write a checkpoint. write: `Saver.start` or `Saver.finish`."""
    training.phases.at("save")
    run.saver.look(wait=True)  # as `write` would, but what is written now has to say whether the best one is on disk
    training.validation.forget(run.saver.failed)
    training.spikes.read()
    write(*saved_state.of(run.job, run.folder.progress, training.engine, training.method))
