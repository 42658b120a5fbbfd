"""The micro-batches of a training stage."""

from collections.abc import Iterable, Iterator

from sparse_mlp_ds.data import loader, loader_processes, sources
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.method import Method


def load_batches(job: Job, stage: str, steps: Iterable[int], method: Method) -> Iterator[loader.Batch]:
    """Return this rank's micro-batches; the loader is closed when they end or are left.

    Args:
        job: The run.
        stage: Name of the stage.
        steps: The optimizer steps whose data are read, as the stage's data order counts them.
        method: The stage's method, which says the views.
    """
    batch, data, order = job.batches[stage], job.data_of(job.recipe.stages[stage]), job.order(stage)
    share = batch.share(process_group.rank(), process_group.world_size())
    slots = micro_batches(order, steps, share, batch.accumulation)
    dataset = loader.ShardDataset(
        join(job.trained_on[stage]), job.image_size, data.classes, method.views, job.recipe.train.seed, order,
        cache=sources.cache(data), decoded_gigabytes=data.decoded_gigabytes,
    )  # fmt: skip
    return loader.load(dataset, slots, loader_processes.processes(data.workers, process_group.local_world_size()))
