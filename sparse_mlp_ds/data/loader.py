"""Batches from shards: a map-style data set that reads samples at their offsets, in the order that it is given.

Nothing is replayed on resume: the first batch after a stop takes as long as any other batch.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparse_mlp_ds.data import loader_processes, reads
from sparse_mlp_ds.data.bad_samples import LABEL, BadSample, BadSampleError, outside
from sparse_mlp_ds.data.cache import Cache
from sparse_mlp_ds.data.config import View
from sparse_mlp_ds.data.decode import Crops
from sparse_mlp_ds.data.decoded import DecodedImages
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import BatchIndices, TrainingOrder
from sparse_mlp_ds.data.rows import Rows
from sparse_mlp_ds.data.samples import SampleReader
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.errors import RunError, UserError

T = TypeVar("T")
_MAX_REPLACEMENTS = 1000
_KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")  # of a signal; neither macOS nor Windows does
_LOOKS = 20  # how often loader processes are looked at until a stuck one is reported


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B samples."""

    inputs: Tensor
    """Images with V views of each: [B, V, 3, H, W] uint8. Rows of n tokens: [B, n] int64."""
    labels: Tensor
    """[B] int64, number of each sample's class."""
    numbers: Tensor
    """[B] int64, each sample's number in the stage; -1 marks padding, and in evaluation a bad sample."""
    bad_samples: tuple[BadSample, ...] = ()
    """The bad samples that belong to this batch; in training, different samples have replaced them."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to a device."""
        inputs, labels, numbers = (t.to(device, non_blocking=True) for t in (self.inputs, self.labels, self.numbers))
        return replace(self, inputs=inputs, labels=labels, numbers=numbers)

    def pin_memory(self) -> "Batch":
        """Copy the tensors to page-locked memory. torch's DataLoader calls this if there is a GPU."""
        inputs, labels, numbers = (t.pin_memory() for t in (self.inputs, self.labels, self.numbers))
        return replace(self, inputs=inputs, labels=labels, numbers=numbers)


class Decoder(Protocol):
    """What makes the network's input from a stored sample."""

    def decode(self, content: Any, number: int) -> np.ndarray:
        """Return the input. Raises BadSampleError.

        Args:
            content: The stored bytes, or an image that was decoded before.
            number: The sample's number in the stage.
        """
        ...

    def blank(self) -> np.ndarray:
        """Return an input of the same shape that stands for a bad sample where it is masked."""
        ...


class ShardDataset(Dataset):
    """An index's samples as the network gets them.

    An image becomes a random crop for each view, or its central square if there are no views; a row of tokens becomes
    its token numbers.
    """

    def __init__(
        self,
        index: Index,
        size: int | None,
        classes: int | None,
        views: Sequence[View] = (),
        seed: int = 0,
        order: TrainingOrder | None = None,
        crop_fraction: float = 1.0,
        cache: Cache | None = None,
        decoded_gigabytes: float = 0,
    ):
        """Prepare to read; files are opened when they are needed.

        Args:
            index: The samples.
            size: Side of the crops, pixels; not used for rows of tokens.
            classes: Number of classes; a sample with a label that is none of them is bad. None reads no labels.
            views: The V views that crops are drawn for.
            seed: Seed of the run.
            order: Order in which the next sample replaces a bad one. Without an order, bad samples are masked.
            crop_fraction: Without views, side of the central square as a share of the image's shorter side.
            cache: Where copies of remote tars are kept.
            decoded_gigabytes: What decoded images may take that stay in memory, in units of 10^9 bytes.
        """
        self.index, self.classes, self.order = index, classes, order
        self._reader = SampleReader(index, cache)
        self._kept = DecodedImages(decoded_gigabytes, size or 1)
        self._decoder: Decoder = Rows(index.text) if index.text else Crops(size or 1, tuple(views), seed, crop_fraction)

    def __getitem__(self, indices: BatchIndices) -> Batch | UserError:
        """Return one micro-batch, or an error for `load` to raise.

        The error is returned, because torch would turn one that is raised in a loader process into a traceback.
        """
        inputs, labels, numbers = [], [], []
        bad_samples: list[BadSample] = []
        try:
            for sample, number in zip(indices.samples.tolist(), indices.numbers.tolist(), strict=True):
                decoded, label, number = self._sample_or_replacement(sample, number, bad_samples)
                inputs.append(decoded)
                labels.append(label)
                numbers.append(number)
        except UserError as error:
            return error
        stacked = torch.from_numpy(np.stack(inputs))
        return Batch(stacked, torch.tensor(labels), torch.tensor(numbers), tuple(bad_samples))

    def _sample_or_replacement(
        self, sample: int, number: int, bad_samples: list[BadSample]
    ) -> tuple[np.ndarray, int, int]:
        """Return input, label and number of a sample, or of what replaces it if it is bad.

        A bad sample is appended to `bad_samples`; bad samples among those that could replace it are not.
        """
        for distance in range(_MAX_REPLACEMENTS):
            try:
                decoded, label = self._sample(sample, number)
                return decoded, label, number
            except BadSampleError as error:
                if distance == 0:
                    shard, position = self.index.locate(sample)
                    bad_samples.append(BadSample(shard.path, shard.key(position), error.reason, str(error)))
            if self.order is None:
                return self._decoder.blank(), 0, -1
            sample = self.order.following(number, distance + 1)
        bad = bad_samples[-1]
        raise UserError(f"{bad.shard}: {_MAX_REPLACEMENTS} samples in a row cannot be used, such as {bad}; remake it")

    def _sample(self, sample: int, number: int) -> tuple[np.ndarray, int]:
        """Return input and label of a sample. Raises BadSampleError."""
        label = self.index.label(sample)
        if self.classes is not None and not 0 <= label < self.classes:
            raise BadSampleError(LABEL, outside(label, self.classes))
        return self._decoder.decode(self._kept.image(sample, self._reader.read), number), label


def load(dataset: ShardDataset, indices: Iterable[BatchIndices], workers: int) -> Iterator[Batch]:
    """Yield one `Batch` per item of `indices`, made ahead of time by `workers` processes.

    Raises UserError if the user can correct what is wrong, RunError if a loader process dies or is stuck for the time
    that `reads.limit` says.
    """
    if workers:
        loader_processes.check_socket_paths()
    limit = reads.limit()
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=loader_processes.AHEAD if workers else None,
        worker_init_fn=partial(_begin_loader_process, limit),
        timeout=limit * reads.LOADER_SHARE / _LOOKS if workers else 0,
    )
    # Loader processes inherit this mask before torch gives them threads, to any of which SIGTERM could be delivered.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}) if _KNOWS_SENDERS else None
    try:
        batches = iter(loader)
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    pids = [process.pid for process in getattr(batches, "_workers", ())]
    watch = loader_processes.Watch(pids, limit * reads.LOADER_SHARE)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # OSError and EOFError: it died while a batch was in the queue, whose memory the reader gets from it.
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "timed out after" in str(error):
                _look(watch, batches)
                continue
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            _end_workers(batches)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"a loader process died ({reason}); if it gave no reason above, the kernel may have killed it for lack "
                "of memory: lower data.workers"
            ) from None
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _look(watch: loader_processes.Watch, batches: Iterator[Any]) -> None:
    """Look for a stuck loader process while a batch is waited for; if there is one, kill all and raise RunError."""
    try:
        watch.look()
    except RunError:
        for process in getattr(batches, "_workers", ()):
            process.kill()  # a stopped one would ignore torch's request to end
        _end_workers(batches)
        raise


def _end_workers(batches: Iterator[Any]) -> None:
    """End what is left of the loader processes after one has died.

    Until then, torch's handler of SIGCHLD raises for the dead one whenever any child of this process ends, wherever the
    main thread is.
    """
    with contextlib.suppress(RuntimeError):  # of that handler, for the last time
        getattr(batches, "_shutdown_workers", lambda: None)()


def _begin_loader_process(limit: float, worker: int) -> None:
    """Make a loader process ignore the signals that ask a run to stop, which launchers send to every process.

    Its rank still needs batches until it has saved a checkpoint, and ends its loader processes itself.

    limit: see `reads.limit`. worker: the process's number.
    """
    host.end_with_parent()
    reads.set_limit(limit, name=f"loader process {worker} (process {os.getpid()})")
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if not _KNOWS_SENDERS:
        return
    parent = os.getppid()

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            continue
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _identity(batch: T) -> T:
    return batch
