"""The stored bytes of single samples, read at their offsets: from local tars, copies of remote ones, or files."""

import os
from collections import OrderedDict

from sparse_mlp_ds import files
from sparse_mlp_ds.data import reads
from sparse_mlp_ds.data.bad_samples import READ, BadSampleError
from sparse_mlp_ds.data.cache import Cache, is_remote
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.errors import UserError

_OPEN_FILES = 128


class SampleReader:
    """Reads samples of an index by their numbers. Each process opens the files that it reads from itself."""

    def __init__(self, index: Index, cache: Cache | None = None):
        """Prepare to read; files are opened when they are needed.

        Args:
            index: The samples.
            cache: Where copies of remote tars are kept.
        """
        self.index, self.cache = index, cache
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, sample: int) -> bytes:
        """Return a sample's encoded image, or its row of tokens, as it is stored. Raises BadSampleError."""
        shard, position = self.index.locate(sample)
        offset, size = int(shard.offsets[position]), int(shard.sizes[position])
        try:
            with reads.reading(shard.path):
                if shard.files is not None:
                    content = _file(shard, position)
                elif is_remote(shard.path):
                    content = self._read_remote(shard, offset, size)
                else:
                    content = files.read_at(self._descriptor(shard), size, offset)
        except OSError as error:
            raise BadSampleError(READ, f"cannot be read ({error.strerror})") from None
        if len(content) != size:
            raise BadSampleError(READ, f"cannot be read ({len(content)} of {size} bytes are there)")
        return content

    def _read_remote(self, shard: Shard, offset: int, size: int) -> bytes:
        """Read from the cache. No file stays open, so that a tar that is removed there frees its space at once."""
        if self.cache is None:
            raise UserError(f"data: {shard.path} is remote; give data.cache a folder and gigabytes")
        with self.cache.open(shard) as file:
            return files.read_at(file.fileno(), size, offset)

    def _descriptor(self, shard: Shard) -> int:
        """Return the descriptor of a local tar, opened by the process that reads from it.

        If too many files are open, the one that was not used for longest is closed.
        """
        if shard.path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard.path] = os.open(shard.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._files.move_to_end(shard.path)
        return self._files[shard.path]


def _file(shard: Shard, position: int) -> bytes:
    assert shard.files is not None
    with open(os.path.join(os.fsencode(shard.path), shard.files[position]), "rb") as file:
        return file.read()
