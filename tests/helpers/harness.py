"""Real gloo ranks for tests: fork N processes, run a function in each, end them all by a deadline."""

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

# A clean server process that has imported everything once; ranks are forked from it in milliseconds. Forking the test
# process itself would copy its OpenMP threads' locks.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.helpers.preload"])


def run(world: int, function: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
    """Run `function(*args)` on `world` ranks and return their results in rank order.

    The ranks share a process group that DeepSpeed has joined. Raises AssertionError with the first rank's traceback, or
    naming the ranks that had not finished after `seconds`; no process outlives the call.
    """
    port = _free_port()
    pipes, processes = [], []
    for rank in range(world):
        receive, send = _context.Pipe(duplex=False)
        process = _context.Process(target=_rank, args=(rank, world, port, send, function, args), daemon=True)
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    results: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(results) < world:
            missing = [r for r in range(world) if r not in results]
            ready = wait([pipes[r] for r in missing], timeout=max(deadline - time.monotonic(), 0))
            assert ready, f"ranks {missing} of {world} had not finished after {seconds} s"
            for rank in [r for r in missing if pipes[r] in ready]:
                try:
                    failure, results[rank] = pickle.loads(pipes[rank].recv_bytes())
                except EOFError:
                    failure = "died without a word"
                assert failure is None, f"rank {rank} of {world}: {failure}"
    finally:
        for process in processes:
            process.join(timeout=5 if len(results) == world else 0)
            process.kill()
            process.join()
    return [results[rank] for rank in range(world)]


def _rank(rank: int, world: int, port: int, send, function: Callable[..., Any], args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from sparse_mlp_ds.distributed import comm, process_group
    from sparse_mlp_ds.train.engine import init_deepspeed

    try:
        with process_group.join(timeout_seconds=60):
            init_deepspeed()
            result = function(*args)
            comm.barrier()
        outcome = (None, result)
    except BaseException:
        outcome = (traceback.format_exc(), None)
    # Plain pickle copies tensors; the pipe's own would share memory of a process that is about to end.
    send.send_bytes(pickle.dumps(outcome))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
