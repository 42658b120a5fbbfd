"""Nodes under mpirun that make a data set together."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sparse_mlp_ds.errors import USAGE, explained
from sparse_mlp_ds.shards.split import Split
from sparse_mlp_ds.shards.writer import Node

FromFirst = Callable[[Callable[[], list[Split]]], list[Split]]
"""Calls a function on node 0 alone, and returns its result on all nodes."""


@contextmanager
def nodes() -> Iterator[tuple[Node, FromFirst]]:
    """Give this node's part of the work, and a function that calls a function on node 0 and returns its result to all.

    If one of several nodes fails, all are ended, because the others would wait for it forever.
    """
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1) == 1:
        yield Node(), lambda function: function()
        return
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    try:
        yield (
            Node(comm.rank, comm.size, comm.Barrier),
            lambda function: comm.bcast(function() if comm.rank == 0 else None),
        )
    except BaseException as error:
        better = explained(error) if isinstance(error, Exception) else None
        print(f"error: {better}" if better else traceback.format_exc(), file=sys.stderr, flush=True)
        comm.Abort(USAGE)
