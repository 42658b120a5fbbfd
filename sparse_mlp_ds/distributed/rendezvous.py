"""What happens before the process group: every rank announces that it has come, or that it will not come.

torch's own rendezvous waits for all ranks as long as a collective may take, and then tells how many are missing. Here,
ranks that will not come (because of bad input on their host) say so, so that nobody waits for them, and ranks from
which nothing is heard are named.
"""

import contextlib
import os
import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, but in no __all__

from sparse_mlp_ds.errors import ReportedError, RunError, UserError, one_line

JOIN_SECONDS = 180.0
"""Time for all ranks to come; hosts that read Python from one slow disk differ by a minute."""
DECLINE_SECONDS = 10.0
"""Longest time that a rank which ends instead of joining takes to tell the others."""
HEARD_SECONDS = 0.5
"""Time that rank 0, which serves the store, waits before it exits; the other ranks look at the store every 0.1 s."""


def join(rank: int, world_size: int, seconds: float = JOIN_SECONDS) -> Store:
    """Return the store of the run once every rank has come.

    Raises ReportedError if a rank has declined, which prints the reason itself; on rank 0, UserError that names the
    ranks missing after `seconds`; on the other ranks, RunError if rank 0 has ended or cannot be reached.
    """
    deadline = time.monotonic() + seconds + (5 if rank else 0)  # rank 0 names the missing ranks first
    try:
        store = _open(rank, world_size, seconds)
        store.set(f"here/{rank}", socket.gethostname())
        store.add("came", 1)
        while store.add("came", 0) < world_size:
            if store.check(["declined"]):
                _linger(store, rank, world_size)
                raise ReportedError(f"{store.get('declined').decode()} ended before it joined; its output says why")
            if time.monotonic() > deadline:
                if rank:
                    raise ReportedError("ranks are missing")
                missing = _missing(store, world_size, seconds)
                store.set("declined", missing)
                time.sleep(HEARD_SECONDS)
                raise UserError(missing)
            time.sleep(0.1)
    except RuntimeError as error:  # an error of the store
        where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank 0 could not be reached at {where}, or has ended; its output says why ({one_line(error, 200)})"
        ) from None
    return store


def decline(rank: int, world_size: int) -> None:
    """Tell the other ranks that this rank ends instead of joining."""
    if world_size == 1:
        return
    with contextlib.suppress(RuntimeError):
        store = _open(rank, world_size, DECLINE_SECONDS)
        store.set("declined", f"rank {rank} on {socket.gethostname()}")
        store.add("went", 1)
        _linger(store, rank, world_size)


def _open(rank: int, world_size: int, seconds: float) -> Store:
    """Serve the store on rank 0, connect to it on the other ranks. seconds: timeout of its operations."""
    # The agent of torchrun already serves a store at this very port, which outlives the ranks.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves, timeout = rank == 0 and not agent, timedelta(seconds=seconds)
    store = TCPStore(address, port, world_size, serves, timeout, wait_for_workers=False, multi_tenant=True)
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _linger(store: Store, rank: int, world_size: int) -> None:
    """Keep rank 0, which serves the store, alive until every rank has come or declined, or DECLINE_SECONDS are over."""
    deadline = time.monotonic() + DECLINE_SECONDS
    while rank == 0 and store.add("came", 0) + store.add("went", 0) < world_size and time.monotonic() < deadline:
        time.sleep(0.1)
    if rank == 0:
        time.sleep(HEARD_SECONDS)


def _missing(store: Store, world_size: int, seconds: float) -> str:
    """Return the message that names the ranks which have not come."""
    here = {rank: store.get(f"here/{rank}").decode() for rank in range(world_size) if store.check([f"here/{rank}"])}
    missing = ", ".join(str(rank) for rank in range(world_size) if rank not in here)
    hosts = ", ".join(dict.fromkeys(here.values()))
    return (
        f"rank {missing} did not join within {seconds:.0f} s, {len(here)} of {world_size} came (from {hosts}); look at "
        "the output of the other hosts, or ask `sparse-mlp-ds doctor --hostfile FILE`"
    )
