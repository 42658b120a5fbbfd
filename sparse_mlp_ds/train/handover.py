"""Weights from one stage to the next: by name, all of the backbone or none."""

from torch import nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.stages import Evaluate, Stage, Supervised, TrainingStage
from sparse_mlp_ds.train import state
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.weights.load import load_into

HEAD = "backbone.head."


def load_start(module: nn.Module, stage: TrainingStage, job: Job) -> None:
    """Fill a training stage's backbone from the file that its `init_from` names, and say what was loaded."""
    start = stage.init_from
    if start is None:
        return
    coverage = load_into(
        module.backbone,
        job.recipe.spec,
        start.path,
        mode=start.resize,
        upcycle=start.upcycle,
        noise=start.noise,
        seed=job.recipe.train.seed,
    )
    if dist.rank() == 0:
        say(coverage.table())


def load_previous(module: nn.Module, stage: Stage, folder: RunFolder) -> None:
    """Fill `module` from the run's newest checkpoint, optimizer state aside, and say what was loaded.

    A training stage may start without one (first stage, or `supervised`) and has a head of its own; an evaluate
    stage takes everything. Raises UserError unless the backbone is covered completely.
    """
    if folder.start is None or stage.kind == "supervised":
        return
    read = Reader(folder.start)
    own = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    kept_fresh = HEAD if isinstance(stage, Supervised) else None
    kind = "momentum" if folder.progress.hands_over_average else "param"
    names = {name: f"{kind}/{name}" for name in own if not (kept_fresh and name.startswith(kept_fresh))}
    for name, tensor in names.items():
        found = read.shapes.get(tensor)
        if found != own[name] and (name.startswith("backbone.") or isinstance(stage, Evaluate)):
            raise UserError(
                f"{folder.start.path}: '{name}' is {'missing' if found is None else f'of shape {found}'}, the model "
                f"needs {own[name]}; resume with the model that wrote it, or start over with --resume never"
            )
    loaded = {name: tensor for name, tensor in names.items() if read.shapes.get(tensor) == own[name]}
    state.load_weights(module, loaded, read)
    if dist.rank() == 0:
        skipped = sum(name.startswith(f"{kind}/") for name in read.shapes) - len(set(loaded.values()))
        fresh = len(own) - len(loaded)
        say(f"weights from {folder.start.path}: {len(loaded)} tensors loaded, {fresh} fresh, {skipped} left there")
