"""What a checkpoint of a stage holds."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sparse_mlp_ds.checkpoints import best
from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.distributed import commit, process_group
from sparse_mlp_ds.train import engine_state
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.progress import Progress


def of(
    job: Job, progress: Progress, engine: Any, method: Method
) -> tuple[int, Iterator[Piece], dict[str, Any], list[int]]:
    """Return what `Saver` takes: the step, this rank's tensors, further entries of the manifest, steps that stay.

    Args:
        job: The run.
        progress: How far it has come; gets the engine's loss scale.
        engine: DeepSpeed's engine of the stage.
        method: The stage's method.
    """
    progress.loss_scale = engine_state.loss_scale(engine)
    code = commit.of_code() if process_group.rank() == 0 else None  # whose entries the manifest has
    about = {
        "progress": vars(progress),
        "recipe": job.recipe.model_dump(mode="json"),
        "ds_config": job.ds_config.raw,
        "topology": job.topology,
        "classes": job.classes,
        "code": asdict(code) if code else None,
    } | ({"text": job.text.record()} if job.recipe.is_text else {})
    stay = [entry["last_step"] for entry in progress.done if "last_step" in entry] + best.steps(vars(progress))
    return progress.step, engine_state.pieces(engine, method.companion), about, stay
