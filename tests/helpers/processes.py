"""Processes that start at the same time, and waiting for those that are somebody else's."""

import multiprocessing
import time

import psutil


def together(function, *arguments):
    """Fork one process per tuple of arguments; each calls function(*arguments, barrier). Returns their exit codes."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(len(arguments))
    processes = [fork.Process(target=function, args=(*one, barrier)) for one in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def ended(pids):
    """Say whether all of these processes end before long."""
    deadline = time.monotonic() + 60
    while any(map(_runs, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
