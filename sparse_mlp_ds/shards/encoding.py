"""Texts become tokens, in several processes and in order."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np

from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import RunError
from sparse_mlp_ds.shards import processes
from sparse_mlp_ds.shards.texts import RawText

_CHARACTERS = 1 << 20  # of the texts that a process gets at once
_AHEAD = 2  # such groups that wait for each process
Encoded = tuple[np.ndarray, np.ndarray | None]
"""Tokens of a text, and of the second text if it is a pair; uint32."""


def encode(texts: Iterable[RawText], tokenizer: Path, workers: int) -> Iterator[tuple[RawText, Encoded]]:
    """Yield each text with its tokens, in the order of the texts.

    Args:
        texts: The texts.
        tokenizer: The tokenizer's file.
        workers: Number of processes; with 0 or 1, this process does it all.

    Raises RunError if one of the processes dies.
    """
    if workers < 2:
        for text in texts:
            yield text, _encoded(tokenizer, [text])[0]
        return
    waiting: deque[tuple[list[RawText], Future[list[Encoded]]]] = deque()
    with processes.pool(workers) as pool:
        try:
            for group in _groups(texts):
                waiting.append((group, pool.submit(_encoded, tokenizer, group)))
                if len(waiting) > _AHEAD * workers:
                    group, future = waiting.popleft()
                    yield from zip(group, future.result(), strict=True)
            for group, future in waiting:
                yield from zip(group, future.result(), strict=True)
        except BrokenProcessPool:
            raise RunError(f"a process that encodes texts {processes.DIED}") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache(maxsize=1)
def _opened(tokenizer: Path) -> Tokenizer:
    return Tokenizer(tokenizer)


def _encoded(tokenizer: Path, texts: list[RawText]) -> list[Encoded]:
    model = _opened(tokenizer)
    return [
        (
            np.array(model.encode(text.text), np.uint32),
            None if text.pair is None else np.array(model.encode(text.pair), np.uint32),
        )
        for text in texts
    ]


def _groups(texts: Iterable[RawText]) -> Iterator[list[RawText]]:
    """Yield the texts in groups of some size."""
    group, size = list[RawText](), 0
    for text in texts:
        group.append(text)
        size += len(text.text) + len(text.pair or "")
        if size >= _CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
