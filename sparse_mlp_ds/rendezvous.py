"""Before the process group: every rank says that it has come, or that it will not, so that nobody waits in vain.

torch's own rendezvous waits for all ranks as long as collectives may take, and then says how many are missing. Here the
ranks that will not come (bad input on their host) say so, and those that say nothing are named.
"""

import contextlib
import os
import socket
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from sparse_mlp_ds.errors import ReportedError, RunError, UserError

JOIN_SECONDS = 180.0
"""For all ranks to come; hosts that read Python from one slow disk differ by a minute."""
DECLINE_SECONDS = 10.0
"""For those that end to be heard."""
HEARD_SECONDS = 0.5
"""Between what is said and the end of rank 0, at which others look ten times a second."""


def join(rank: int, world: int, seconds: float = JOIN_SECONDS) -> Store:
    """Return the store of the run once every rank has come.

    Raises ReportedError if a rank has declined, which says why itself; on rank 0 UserError naming those that did not
    come in time; RunError if rank 0 has gone.
    """
    deadline = time.monotonic() + seconds + (5 if rank else 0)  # rank 0 says who is missing
    try:
        store = _open(rank, world, seconds)
        store.set(f"here/{rank}", socket.gethostname())
        store.add("came", 1)
        while store.add("came", 0) < world:
            if store.check(["declined"]):
                _linger(store, rank, world)
                raise ReportedError(f"{store.get('declined').decode()} ended before it joined; its output says why")
            if time.monotonic() > deadline:
                if rank:
                    raise ReportedError("ranks are missing")
                missing = _missing(store, world, seconds)
                store.set("declined", missing)
                time.sleep(HEARD_SECONDS)
                raise UserError(missing)
            time.sleep(0.1)
    except RuntimeError as error:  # of the store
        text = " ".join(str(error).split())[:200]
        where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        raise RunError(f"rank 0 was not to be reached at {where}, or has gone; its output says why ({text})") from None
    return store


def decline(rank: int, world: int) -> None:
    """Tell the others that this rank ends instead of joining."""
    if world == 1:
        return
    with contextlib.suppress(RuntimeError):
        store = _open(rank, world, DECLINE_SECONDS)
        store.set("declined", f"rank {rank} on {socket.gethostname()}")
        store.add("went", 1)
        _linger(store, rank, world)


def _open(rank: int, world: int, seconds: float) -> Store:
    # torchrun's agent has a store already, at that very port, which outlives the ranks.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves, timeout = rank == 0 and not agent, timedelta(seconds=seconds)
    store = TCPStore(address, port, world, serves, timeout, wait_for_workers=False, multi_tenant=True)
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _linger(store: Store, rank: int, world: int) -> None:
    """Keep rank 0, which holds what was said, until everybody has been there."""
    deadline = time.monotonic() + DECLINE_SECONDS
    while rank == 0 and store.add("came", 0) + store.add("went", 0) < world and time.monotonic() < deadline:
        time.sleep(0.1)
    if rank == 0:
        time.sleep(HEARD_SECONDS)


def _missing(store: Store, world: int, seconds: float) -> str:
    here = {rank: store.get(f"here/{rank}").decode() for rank in range(world) if store.check([f"here/{rank}"])}
    missing = ", ".join(str(rank) for rank in range(world) if rank not in here)
    hosts = ", ".join(dict.fromkeys(here.values()))
    return (
        f"rank {missing} did not join within {seconds:.0f} s, {len(here)} of {world} came (from {hosts}); look at the "
        "output of the other hosts, or ask `sparse-mlp-ds doctor --hostfile FILE`"
    )
