"""Batches from shards: a map-style data set that reads at offsets, driven by the order's slots.

Nothing is replayed on resume: the first batch after any stop costs as much as any other.
"""

import os
import shutil
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparse_mlp_ds.data.cache import Cache, is_remote
from sparse_mlp_ds.data.decode import Picture, center_box, random_box
from sparse_mlp_ds.data.defects import LABEL, READ, Bad, BadSampleError
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.data.order import Slots, TrainingOrder
from sparse_mlp_ds.data.sections import View
from sparse_mlp_ds.errors import RunError, UserError

AHEAD = 2
"""Batches that each loader process prepares ahead."""
_OPEN_FILES = 128
_TRIES = 1000


@dataclass(frozen=True)
class Batch:
    """One micro-batch; B samples, V views of each."""

    images: Tensor
    """[B, V, 3, H, W] uint8."""
    labels: Tensor
    """[B] int64."""
    numbers: Tensor
    """[B] int64, each sample's number in the stage; -1 marks padding, and in evaluation a bad sample."""
    bad: tuple[Bad, ...] = ()
    """Samples of this batch's own that another one stands in for."""

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device."""
        return Batch(*(t.to(device, non_blocking=True) for t in (self.images, self.labels, self.numbers)), self.bad)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; the loader calls it when a GPU is used."""
        return Batch(*(t.pin_memory() for t in (self.images, self.labels, self.numbers)), self.bad)


class ShardDataset(Dataset):
    """Decoded crops of an index's samples: random ones for `views`, the central one without."""

    def __init__(
        self,
        index: Index,
        size: int,
        classes: int,
        views: Sequence[View] = (),
        seed: int = 0,
        order: TrainingOrder | None = None,
        crop_fraction: float = 1.0,
        cache: Cache | None = None,
    ):
        """size: side of the crops, pixels. classes: labels from there on are bad. order: where the stand-ins of bad
        samples come from; without it they are masked. crop_fraction: share of the shorter side kept without views.
        """
        self.index, self.size, self.classes, self.views, self.seed = index, size, classes, views, seed
        self.order, self.crop_fraction, self.cache = order, crop_fraction, cache
        self._files: OrderedDict[str, int] = OrderedDict()

    def __getitem__(self, slots: Slots) -> Batch | UserError:
        """Return one micro-batch, or what the user has to mend: raised, its message would be a traceback."""
        images, labels, numbers, bad = [], [], [], []
        try:
            for sample, number in zip(slots.samples.tolist(), slots.numbers.tolist(), strict=True):
                crops, label, number = self._crops_or_stand_in(sample, number, bad)
                images.append(crops)
                labels.append(label)
                numbers.append(number)
        except UserError as error:
            return error
        return Batch(torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(numbers), tuple(bad))

    def _crops_or_stand_in(self, sample: int, number: int, bad: list[Bad]) -> tuple[np.ndarray, int, int]:
        """Return crops [V, 3, size, size], label and number of a slot; notes its own sample in `bad` if that is."""
        for distance in range(_TRIES):
            try:
                crops, label = self._crops(sample, number)
                return crops, label, number
            except BadSampleError as error:
                if distance == 0:
                    shard, place = self.index.locate(sample)
                    bad.append(Bad(shard.path, shard.key(place), error.reason, str(error)))
            if self.order is None:
                return np.zeros((max(len(self.views), 1), 3, self.size, self.size), np.uint8), 0, -1
            sample = self.order.following(number, distance + 1)
        raise UserError(f"{bad[-1].shard}: {_TRIES} samples in a row cannot be used, such as {bad[-1]}; remake it")

    def _crops(self, sample: int, number: int) -> tuple[np.ndarray, int]:
        shard, place = self.index.locate(sample)
        label = int(shard.labels[place])
        if not 0 <= label < self.classes:
            raise BadSampleError(LABEL, f"has label {label}, outside the {self.classes} classes of data.classes")
        picture = Picture(self._read(shard, int(shard.offsets[place]), int(shard.sizes[place])))
        if self.views:
            boxes = [random_box(picture.size, view, self.seed, number, s) for s, view in enumerate(self.views)]
        else:
            boxes = [center_box(picture.size, self.crop_fraction)]
        return picture.cut(boxes, self.size), label

    def _read(self, shard: Shard, offset: int, size: int) -> bytes:
        try:
            if is_remote(shard.path):
                content = self._read_remote(shard, offset, size)
            else:
                content = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise BadSampleError(READ, f"cannot be read ({error.strerror})") from None
        if len(content) < size:
            raise BadSampleError(READ, f"cannot be read ({len(content)} of {size} bytes are there)")
        return content

    def _read_remote(self, shard: Shard, offset: int, size: int) -> bytes:
        """Read from the cache, keeping nothing open: a tar that is removed there is to leave its room."""
        while True:
            try:
                with open(self.cache.fetch(shard), "rb") as file:
                    return os.pread(file.fileno(), size, offset)
            except FileNotFoundError:  # removed by another process before it was opened here
                continue

    def _file(self, shard: Shard) -> int:
        """Return the tar's descriptor, opened by the process that reads; those not used for longest are closed."""
        if shard.path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard.path] = os.open(shard.path, os.O_RDONLY)
        self._files.move_to_end(shard.path)
        return self._files[shard.path]


def load(dataset: ShardDataset, slots: Iterable[Slots], workers: int) -> Iterator[Batch]:
    """Yield one `Batch` per item of `slots`, decoded by `workers` processes ahead of time.

    Raises UserError for what the user has to mend, RunError if a loader process dies.
    """
    batches = DataLoader(
        dataset,
        batch_size=None,
        sampler=slots,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_obey_the_parent_alone,
    )
    # Loaders inherit this before torch gives them threads, any one of which SIGTERM could be delivered to.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        running = iter(batches)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        try:
            batch = next(running)
        except StopIteration:
            return
        # OSError and EOFError: it died while a batch lay in the queue, whose memory the reader asks it for.
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"a loader process died ({said}); if the kernel killed it for lack of memory, lower data.workers"
            ) from None
        if isinstance(batch, UserError):
            raise batch
        yield batch


def check_shared_memory(workers: int, ranks: int, batch_bytes: int, folder: Path = Path("/dev/shm")) -> None:
    """Raise UserError if /dev/shm cannot hold the batches that the loaders of one host prepare ahead.

    ranks: on this host. batch_bytes: of one micro-batch.
    """
    if not workers or not folder.is_dir():
        return
    needed, free = ranks * (workers * AHEAD + 1) * batch_bytes, shutil.disk_usage(folder).free
    if needed > free:
        room = -(-2 * needed // 2**30)
        raise UserError(
            f"{folder}: {free / 2**20:.0f} MiB are free, the loaders of {ranks} ranks prepare {needed / 2**20:.0f} "
            f"MiB; start the container with --shm-size={room}g, or lower data.workers"
        )


def _obey_the_parent_alone(worker: int) -> None:
    """Let signals that ask a run to stop pass a loader process by, though launchers send them to every process.

    The rank still needs batches until it has saved, and ends its loaders itself.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def listen() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            continue
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch
