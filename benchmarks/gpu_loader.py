"""How fast real JPEGs come to the GPU: loader processes alone, then with copying and augmentation on the device."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu_timing import Settings, device, synchronize
from sparse_mlp_ds.data import augment, loader, loader_processes
from sparse_mlp_ds.data import index as indexes
from sparse_mlp_ds.data.config import Blur, Jitter, View
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import Part, TrainingOrder, micro_batches
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.shards import digits

SIZE, BATCH = 224, 64
VIEW = View(jitter=Jitter(), grayscale=0.2, blur=Blur(p=0.5), solarize=0.2)  # about the mean of MoCo v3's two
Case = tuple[str, Callable[[], dict]]


def cases(settings: Settings) -> Iterator[Case]:
    """Images per second of 1, 4 and all but one cores, for each folder of tars."""
    folders = settings.data
    if not folders:
        digits.make(settings.folder / "digits")
        folders = (settings.folder / "digits" / "train",)
    counts = (1,) if settings.toy else sorted({1, 4, 8, max(host.cores() - 1, 1)})
    for folder in folders:
        for workers in counts:
            for to_device in (False, True) if workers == counts[-1] else (False,):
                name = f"{folder.name}, {workers} processes" + (", augmented on the device" if to_device else "")
                yield name, lambda f=folder, w=workers, d=to_device: _rate(f, w, d, settings)


def _rate(folder: Path, workers: int, to_device: bool, settings: Settings) -> dict:
    index = indexes.load(folder)
    size, batch = (32, 16) if settings.toy else (SIZE, BATCH)
    order = _order(index, batch)
    dataset = loader.ShardDataset(index, size, len(index.classes), (VIEW,), 0, order)
    ahead = loader_processes.AHEAD * workers
    batches = loader.load(dataset, micro_batches(order, range(10**6), range(batch)), workers)
    for _ in range(1 if settings.toy else ahead):  # the processes are up, and what they prepared meanwhile is gone
        next(batches)
    seconds, done = (0.2 if settings.toy else 3.0), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or not done:
        one = next(batches)
        if to_device:
            augment.views(one.to(device()), (VIEW,), 0)
        done += batch
    synchronize()
    per_second = done / (time.perf_counter() - started)
    batches.close()
    return {"images_per_second": per_second, "per_process": per_second / workers, "cores": os.cpu_count()}


def _order(index: Index, batch: int) -> TrainingOrder:
    return TrainingOrder((Part(tuple(len(one) for one in index.shards), len(index)),), batch, 0)
