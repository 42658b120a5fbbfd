"""From tokens to rows of n: documents cut into rows, a stream of documents, or one text or pair a row."""

from collections.abc import Iterator

import numpy as np

from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.errors import UserError

MOST = 64
"""Tokens of a question that are kept, as BERT keeps them."""


def documents(text: TextFormat, tokens: np.ndarray) -> np.ndarray:
    """Return the rows of one document, [k, n]: `[CLS]`, n - 2 tokens, `[SEP]`. What fills no row is left out."""
    inner = text.length - 2
    count = len(tokens) // inner
    return _framed(text, tokens[: count * inner].reshape(count, inner))


class Stream:
    """Joins documents, with `[SEP]` between them, and cuts them into rows like those of `documents`."""

    def __init__(self, text: TextFormat):
        """text: what the rows are."""
        self._text = text
        self._left = np.empty(0, text.dtype)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Return the rows that another document fills, [k, n]; what is left begins the next row."""
        between = np.array([self._text.special["sep"]], self._text.dtype)
        joined = np.concatenate([self._left, tokens, between])
        rows = documents(self._text, joined)
        self._left = joined[len(rows) * (self._text.length - 2) :]
        return rows

    @property
    def left_out(self) -> int:
        """Number of tokens that have filled no row so far."""
        return len(self._left)


def one_row(text: TextFormat, tokens: np.ndarray, pair: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Return a row [1, n] of one text or pair, `[CLS] a [SEP] b [SEP]` and padding, and how many tokens did not fit.

    Tokens are taken away from the end of the text, of a pair from the longer text first.

    Args:
        text: what the row is.
        tokens: of the text.
        pair: tokens of the second text.
    """
    room = text.length - (2 if pair is None else 3)
    first = min(len(tokens), room)
    second = 0
    if pair is not None:
        first, second = _shares(len(tokens), len(pair), room)
    cls, sep, pad = (text.special[name] for name in ("cls", "sep", "pad"))
    row = np.full((1, text.length), pad, text.dtype)
    row[0, 0] = cls
    row[0, 1 : 1 + first] = tokens[:first]
    row[0, 1 + first] = sep
    if pair is None:
        return row, len(tokens) - first
    row[0, 2 + first : 2 + first + second] = pair[:second]
    row[0, 2 + first + second] = sep
    return row, len(tokens) + len(pair) - first - second


def windows(context: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the windows on a context, the last of which ends with it.

    Args:
        context: number of its tokens.
        room: tokens that a window can have.
        stride: by how many tokens each window begins after the one before it.
    """
    begin = 0
    while True:
        yield begin, min(begin + room, context)
        if begin + room >= context:
            return
        begin += stride


def windows_of(
    text: TextFormat, question: list[int], context: list[int], stride: int
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Yield the windows on a context: begin and end in it, the place in the row of its first token, the row [1, n].

    Args:
        text: What the rows are.
        question: Tokens of the question, of which at most the first MOST are kept.
        context: Tokens of the context.
        stride: By how many tokens each window begins after the one before it.

    Raises UserError if a row has less room beside the question than the stride.
    """
    question = question[:MOST]
    room, first = text.length - len(question) - 3, len(question) + 2
    if room < 1 or stride > room:
        raise UserError(
            f"--length {text.length}: beside a question of {len(question)} tokens there is room for {room} of "
            f"the context, less than --stride {stride}; change one of them"
        )
    for begin, end in windows(len(context), room, stride):
        row, _ = one_row(text, np.array(question, int), np.array(context[begin:end], int))
        yield begin, end, first, row


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts fit, if the longer one loses tokens until both are equally long."""
    half = room // 2
    if first + second <= room:
        return first, second
    if first <= half:
        return first, room - first
    if second <= room - half:
        return room - second, second
    return room - half, half


def _framed(text: TextFormat, inner: np.ndarray) -> np.ndarray:
    """Return rows [k, n] of tokens [k, n - 2] between `[CLS]` and `[SEP]`."""
    rows = np.empty((len(inner), text.length), text.dtype)
    rows[:, 0], rows[:, 1:-1], rows[:, -1] = text.special["cls"], inner, text.special["sep"]
    return rows
