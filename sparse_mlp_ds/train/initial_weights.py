"""Weights that a stage starts from: those of the previous stage, or of a file, matched by name."""

from torch import nn

from sparse_mlp_ds.checkpoints.manifest import Checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.config.stage_base import LabelStage
from sparse_mlp_ds.config.stages import Evaluate, FinetuneSpan, FinetuneText, MaskedLM, Stage, TrainingStage
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import fetch
from sparse_mlp_ds.hub.describe import TASKS
from sparse_mlp_ds.hub.load import task_of
from sparse_mlp_ds.log.console import say, show
from sparse_mlp_ds.models.backbone import HEAD, Backbone
from sparse_mlp_ds.train import engine_state
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.weights.load import load_into

NEW_HEAD = f"backbone.{HEAD}"
"""What the names of the tensors begin with that a stage of labels starts anew."""


def load_start(module: nn.Module, stage: TrainingStage, job: Job) -> None:
    """Fill a training stage's backbone from the file that its `init_from` names, and print what was loaded.

    A masked language model takes the bias of its output layer from there, too, if there is one.
    """
    start = stage.init_from
    if start is None:
        return
    backbone = module.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    path = fetch.local(start.path)
    head = start.head
    if isinstance(stage, FinetuneText | FinetuneSpan):  # two classes have a head of the same shape as answers
        head = head and task_of(path) in (None, TASKS[stage.kind])
    coverage = load_into(
        backbone,
        job.recipe.spec,
        path,
        mode=start.resize,
        upcycle=start.upcycle,
        noise=start.noise,
        seed=job.recipe.train.seed,
        head=head,
        output_bias=getattr(module, "bias", None) if isinstance(stage, MaskedLM) else None,
    )
    if process_group.rank() == 0:
        show(coverage.table())


def load_previous(module: nn.Module, stage: Stage, folder: RunFolder, source: Checkpoint | None = None) -> None:
    """Fill `module` from a checkpoint, without optimizer state, and print what was loaded.

    source: of the run; None takes the newest one.

    A training stage may start without a checkpoint (as the first stage, as `supervised`, or `from_scratch`) and begins
    with a fresh head; an evaluate stage loads everything. Raises UserError unless every tensor of the backbone is
    there.
    """
    source = source or folder.start
    from_scratch = isinstance(stage, FinetuneText | FinetuneSpan) and stage.from_scratch
    if source is None or from_scratch or stage.kind == "supervised":
        return
    read = Reader(source)
    own = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    kept_fresh = NEW_HEAD if isinstance(stage, LabelStage) else None
    kind = "momentum" if folder.progress.hands_over_average else "param"
    names = {name: f"{kind}/{name}" for name in own if not (kept_fresh and name.startswith(kept_fresh))}
    for name, tensor in names.items():
        found = read.shapes.get(tensor)
        if found != own[name] and (name.startswith("backbone.") or isinstance(stage, Evaluate)):
            raise UserError(
                f"{source.path}: '{name}' is {'missing' if found is None else f'of shape {found}'}, the model "
                f"needs {own[name]}; resume with the model that wrote it, or start over with --resume never"
            )
    loaded = {name: tensor for name, tensor in names.items() if read.shapes.get(tensor) == own[name]}
    engine_state.load_weights(module, loaded, read)
    if process_group.rank() == 0:
        skipped = sum(name.startswith(f"{kind}/") for name in read.shapes) - len(set(loaded.values()))
        fresh = len(own) - len(loaded)
        say(f"weights from {source.path}: {len(loaded)} tensors loaded, {fresh} fresh, {skipped} left there")
