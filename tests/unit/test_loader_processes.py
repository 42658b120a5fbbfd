"""Loader processes: how many there are, what they need of the host, and what happens when one dies."""

import os
import signal
import subprocess

import psutil
import pytest
import torch

from sparse_mlp_ds.data.loader import load
from sparse_mlp_ds.data.loader_processes import check_shared_memory, check_socket_paths, processes
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.errors import RunError, UserError
from tests.helpers.numbered_tars import dataset, numbered, order_of, write


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write(tmp_path_factory.mktemp("uneven"), numbered([5, 17, 1]))


@pytest.mark.parametrize(
    "workers, cores, ranks, expected",
    [(None, 64, 8, 7), (None, 2, 2, 1), (None, 224, 8, 16), (0, 64, 8, 0), (4, 2, 2, 4)],
)
def test_loader_processes_follow_the_cores_of_a_rank_unless_given(monkeypatch, workers, cores, ranks, expected):
    monkeypatch.setattr(host, "cores", lambda: cores)
    assert processes(workers, ranks) == expected


def test_a_dead_loader_process_gives_one_line(index):
    order = order_of(index, 12)
    before = set(psutil.Process().children(recursive=True))
    batches = load(dataset(index, order), micro_batches(order, range(5000), range(12)), 1)
    next(batches)
    (worker,) = set(psutil.Process().children(recursive=True)) - before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="a loader process died") as caught:
        list(batches)
    assert "\n" not in str(caught.value) and "data.workers" in str(caught.value)


def test_a_dead_loader_process_is_not_told_again_later(index, monkeypatch):
    """Its pipe may break before the kernel tells of its end, and torch raises for that wherever the main thread is."""
    order = order_of(index, 12)
    before = set(psutil.Process().children(recursive=True))
    batches = load(dataset(index, order), micro_batches(order, range(5000), range(12)), 1)
    next(batches)
    (worker,) = set(psutil.Process().children(recursive=True)) - before
    tell = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data", _broken_pipe)
    try:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        worker.kill()
        with pytest.raises(RunError, match="a loader process died") as caught:  # whose frames keep torch's iterator
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, tell)
    tell(signal.SIGCHLD, None)
    assert caught


def _broken_pipe(*_, **__):
    raise EOFError


def test_a_loader_process_does_not_end_when_everybody_is_asked_to_stop(index):
    """Slurm sends SIGTERM to every process; the kernel gives it to any thread of a process that does not block it."""
    order = order_of(index, 12)
    before, threads = set(psutil.Process().children(recursive=True)), torch.get_num_threads()
    torch.set_num_threads(4)  # a loader process gets threads of torch's if its parent has them
    try:
        batches = load(dataset(index, order), micro_batches(order, range(50), range(12)), 1)
        next(batches)
    finally:
        torch.set_num_threads(threads)
    (worker,) = set(psutil.Process().children(recursive=True)) - before
    for _ in range(10):
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # a sender that is not its parent
    assert len(list(batches)) == 49


def test_small_shared_memory_is_explained(tmp_path):
    check_shared_memory(0, 8, 2**60)
    check_shared_memory(1, 1, 1000, tmp_path)
    with pytest.raises(UserError, match=r"MiB are free.*--shm-size=\d+g.*data\.workers"):
        check_shared_memory(2, 1, 2**60, tmp_path)


@pytest.mark.parametrize("length, fits", [(40, True), (72, True), (73, False), (200, False)])
def test_a_folder_for_temporary_files_whose_name_is_too_long_is_said_at_once(index, monkeypatch, length, fits):
    folder = "/tmp/".ljust(length, "x")
    monkeypatch.setattr("tempfile.tempdir", folder)
    if fits:
        check_socket_paths()
        return
    with pytest.raises(UserError, match="TMPDIR.*longer than 72 characters.*data.workers to 0") as caught:
        next(load(dataset(index, order_of(index, 12)), micro_batches(order_of(index, 12), range(2), range(12)), 1))
    assert len(str(caught.value).splitlines()) == 1
