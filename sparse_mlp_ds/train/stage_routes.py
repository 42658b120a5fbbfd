"""What the experts do at a stage's end, written into the run folder: as `sparse-mlp-ds routes` shows it."""

from torch import nn

from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.spec import of_images
from sparse_mlp_ds.routes import load_history
from sparse_mlp_ds.routes.collect import Images, collect
from sparse_mlp_ds.routes.record import Load
from sparse_mlp_ds.routes.write import write
from sparse_mlp_ds.train.evaluate import batches
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method
from sparse_mlp_ds.train.run_folder import RunFolder


def write_routes(job: Job, name: str, method: Method, folder: RunFolder) -> None:
    """Write RUN/routes/STAGE, if the recipe asks for it and the model has experts. Collective.

    It is of the weights that the stage hands over. A file that cannot be written costs a warning, not the run.

    Args:
        job: The run.
        name: Name of the stage.
        method: The stage's method.
        folder: The run folder.
    """
    recipe = job.recipe
    if not (recipe.log.routes and recipe.spec.experts):
        return
    index, spec = job.val.thinned(recipe.log.routes_images), of_images(recipe.spec)
    images = Images(index, recipe.data, job.classes)
    batch = job.batches[name].evaluation

    def load(layers: set[str]) -> tuple[Load, ...]:
        try:
            return load_history.read(folder.path / "metrics.jsonl", layers)
        except UserError as error:  # whose records a full disk has refused
            say(f"WARNING: {error}")
            return ()

    title = f"{recipe.model['name']}, recipe {recipe.name}, stage {name}, step {folder.progress.step}"
    backbone = _backbone(method)
    record = collect(backbone, spec, images, batches(index, recipe.data, spec.image_size, batch), title, load)
    if process_group.rank() == 0 and record is not None:
        out = folder.path / "routes" / name
        try:
            pictures = write(out, record)
            say(f"{name}: what the experts do with {record.images} images is in {out} ({len(pictures)} pictures)")
        except OSError as error:
            say(f"WARNING: {out}: {error.strerror}; the pictures are missing, training goes on")


def _backbone(method: Method) -> Backbone:
    """Return the model with the weights that a stage hands over."""
    network: nn.Module | None = method.companion if method.hands_over_companion else method.module
    assert network is not None
    backbone = network.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    return backbone
