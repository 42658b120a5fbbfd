"""`checkpoint.mirror` while a run goes on: rank 0 has the run folder copied, and waits for that at the end."""

import contextlib
from collections.abc import Callable, Iterator

from sparse_mlp_ds.checkpoints.uploader import Uploader
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import StoppedError
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train.run_folder import RunFolder
from sparse_mlp_ds.watchdog.client import Watch

FINISH_SECONDS = 300.0
"""Longest time that a run waits at its end, or when it is stopped, until everything is uploaded; never more than
`train.timeout_seconds`, after which the other ranks would give up."""


@contextlib.contextmanager
def mirroring(folder: RunFolder, watch: Watch) -> Iterator[Callable[[], None]]:
    """Copy a run folder to the recipe's mirror, if it names one, during the `with` block. Collective.

    Gives a function to call on rank 0 when a checkpoint has been written; it returns at once. At the end of the block,
    or if the run is stopped on request, the rest is waited for; any different end of the run waits for nothing.
    """
    recipe = folder.job.recipe
    if recipe.checkpoint.mirror is None:
        yield lambda: None
        return
    uploader = Uploader(folder.path, recipe.checkpoint.mirror, say) if process_group.rank() == 0 else None
    seconds = min(FINISH_SECONDS, recipe.train.timeout_seconds)
    finish = lambda: uploader.finish(seconds) if uploader else None  # noqa: E731
    try:
        yield uploader.look if uploader else lambda: None
    except StoppedError:
        watch.at("save")
        comm.on_rank_zero(finish)
        raise
    except BaseException:
        if uploader:
            uploader.close()
        raise
    watch.at("save")
    comm.on_rank_zero(finish)
