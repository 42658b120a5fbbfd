"""Processes that start at the same time, and waiting for those that are somebody else's."""

import multiprocessing
import time

import psutil

from sparse_mlp_ds.distributed import processes


def together(function, *arguments):
    """Fork one process per tuple of arguments; each calls function(*arguments, barrier). Returns their exit codes."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(len(arguments))
    children = [fork.Process(target=function, args=(*one, barrier)) for one in arguments]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
    return [process.exitcode for process in children]


def agents_of(pids):
    """Return the processes that watch these ranks."""
    watched = {f'"pid": {pid},' for pid in pids}
    found = []
    for one in psutil.process_iter():
        words = processes.command(one)
        if "sparse_mlp_ds.watchdog.agent" in words and any(pid in words[-1] for pid in watched):
            found.append(one)
    return found


def ended(pids):
    """Say whether all of these processes end before long."""
    deadline = time.monotonic() + 60
    while any(map(_runs, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid):
    process = processes.with_number(pid)
    return process is not None and processes.runs(process)
