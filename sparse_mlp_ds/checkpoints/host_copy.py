"""Copies of a checkpoint's pieces in host memory, made while a GPU goes on to compute.

A GPU copies to page-locked memory beside its kernels, on a stream of its own, and neither the host nor the next step's
forward and backward passes wait for it. Only what changes the copied tensors must: see `HostCopy.hold`.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.distributed import process_group

ALIGNMENT = 16
"""Each piece begins at a multiple of so many bytes of the buffer, so that it can be of any type."""


class HostCopy:
    """The copy of one checkpoint at a time. On GPUs all copies use the same page-locked memory, one after the other."""

    _stream: torch.cuda.Stream | None = None
    _copied: torch.cuda.Event | None = None
    _held = True

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def take(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Return the pieces with their values in host memory; those of a GPU are there after `wait`.

        The next call overwrites them. Until `hold`, the tensors on the GPU must not change.
        """
        if not process_group.on_gpu():
            return [replace(piece, values=piece.values.detach().to("cpu", copy=True)) for piece in pieces]
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())  # the update that made these values
        with torch.cuda.stream(self._stream):
            copies = self._begin(list(pieces))
        self._copied = torch.cuda.Event(blocking=True)
        self._copied.record(self._stream)
        self._held = False
        return copies

    def hold(self) -> None:
        """Let what the GPU is asked for from now on wait until it has copied; the host does not wait.

        Call it before anything changes the tensors that were given to `take`.
        """
        if self._copied and not self._held:
            torch.cuda.current_stream().wait_event(self._copied)
            self._held = True

    def wait(self) -> None:
        """Wait until all that `take` returned is in host memory. Any thread may call it."""
        if self._copied:
            with torch.cuda.device(process_group.device()):  # a new thread would use GPU 0
                self._copied.synchronize()

    def _begin(self, pieces: list[Piece]) -> list[Piece]:
        """Ask for the copies in the present stream, without waiting for them."""
        sizes = [-(-piece.values.nbytes // ALIGNMENT) * ALIGNMENT for piece in pieces]
        if sum(sizes) > self._buffer.numel():
            self._buffer = torch.empty(0, dtype=torch.uint8)  # first give back what is too small
            self._buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
        copies = []
        for piece, part in zip(pieces, self._buffer[: sum(sizes)].split(sizes), strict=True):
            values = part[: piece.values.nbytes].view(piece.values.dtype)
            copies.append(replace(piece, values=values.copy_(piece.values.detach(), non_blocking=True)))
        return copies
