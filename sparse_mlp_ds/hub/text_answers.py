"""The answer to a question, as a part of a text of any length, by a model that was fine-tuned for that."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_mlp_ds.data.spans import best_spans, context_places
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import packing

LONGEST = 30
"""Most tokens of an answer, as in the stage `finetune_span`."""
_STRIDE = 128  # tokens by which each window begins after the one before it, as `shards make squad` has it
_ROWS = 32  # windows per forward pass


@dataclass(frozen=True)
class Answer:
    """The part of a text that a model finds most likely to answer a question."""

    text: str
    """The answer."""
    start: int
    """Where it begins in the text, characters."""
    end: int
    """Where it ends in the text, characters."""
    score: float
    """Sum of the logits of its first and its last token."""
    no_answer: float
    """The same sum of `[CLS]`, the lowest of all windows: above `score`, the text does not answer the question, if the
    model has learnt from such questions."""


@torch.no_grad()
def find_answer(
    forward: Callable[[Tensor], Tensor], tokenizer: Tokenizer, text: TextFormat, question: str, context: str
) -> Answer:
    """Return the best answer over all windows on a context.

    Args:
        forward: Returns logits [B, n, 2] of tokens [B, n].
        tokenizer: Makes tokens of texts.
        text: What the rows are.
        question: The question.
        context: The text that may answer it.

    Raises UserError if question or context have no tokens, or if the rows are too short for the question.
    """
    asked = tokenizer.encode(question.strip())
    tokens, offsets = tokenizer.encode_with_offsets(context)
    if not (asked and tokens):
        raise UserError(f"predict: the {'context' if asked else 'question'} is empty; give a text")
    room = text.length - 3 - min(len(asked), packing.MOST)
    if room < 1:
        raise UserError(f"predict: the question's {len(asked)} tokens fill a row of {text.length}; shorten it")
    stride = max(min(_STRIDE, room // 2), 1)
    windows = list(packing.windows_of(text, asked, tokens, stride))
    best, none = (float("-inf"), 0, 0), float("inf")
    for at in range(0, len(windows), _ROWS):
        some = windows[at : at + _ROWS]
        rows = torch.from_numpy(np.concatenate([row for *_, row in some]).astype(np.int64))
        start, end = forward(rows).float().cpu().unbind(dim=2)
        none = min(none, float((start[:, 0] + end[:, 0]).min()))
        spans = best_spans(start, end, context_places(rows, text), LONGEST)
        for (begin, _, first, _), (score, one, last) in zip(some, spans.tolist(), strict=True):
            if score > best[0]:
                best = (score, offsets[begin + int(one) - first][0], offsets[begin + int(last) - first][1])
    score, begins, ends = best
    return Answer(context[begins:ends].strip(), begins, ends, score, none)
