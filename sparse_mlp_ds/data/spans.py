"""Answers that are stretches of a text: where in a row of tokens one may stand, and which one scores best."""

import torch
from torch import Tensor

from sparse_mlp_ds.data.text_format import TextFormat


def context_places(tokens: Tensor, text: TextFormat) -> Tensor:
    """Return which tokens of `[CLS] question [SEP] window [SEP]` are the window's, [B, n] bool. tokens: [B, n]."""
    ends = (tokens == text.special["sep"]).cumsum(dim=1)
    special = torch.isin(tokens, torch.tensor(sorted(text.special.values()), device=tokens.device))
    return (ends == 1) & ~special


def best_spans(start: Tensor, end: Tensor, allowed: Tensor, longest: int) -> Tensor:
    """Return each sequence's best span as [B, 3]: score, first place, last place; of equal ones the first.

    A span's score is the start logit of its first place plus the end logit of its last one.

    Args:
        start: [B, n] logits of being an answer's first token.
        end: [B, n] logits of being an answer's last token.
        allowed: [B, n] places that an answer may have.
        longest: most tokens of an answer.
    """
    start, end = (logits.masked_fill(~allowed, -torch.inf) for logits in (start.double(), end.double()))
    best = torch.stack([torch.full_like(start[:, 0], -torch.inf), *[torch.zeros_like(start[:, 0])] * 2], dim=1)
    for length in range(min(longest, start.shape[1])):
        scores = start[:, : start.shape[1] - length] + end[:, length:]
        score, first = scores.max(dim=1)
        found = torch.stack([score, first.double(), (first + length).double()], dim=1)
        earlier = (score == best[:, 0]) & (found[:, 1] < best[:, 1])
        better = (score > best[:, 0]) | (earlier & score.isfinite())
        best = torch.where(better[:, None], found, best)
    return best
