"""Which tokens of a sequence are hidden for masked language modelling, and what stands in their place.

BERT's rule (Devlin et al., 2019, 3.1) with a fixed number of places: every full sequence has the same number, so that
all samples weigh the same and a step is the same one on any number of ranks. The draws belong to the sample (see
`rng`): the places of a sequence depend neither on its batch nor on the rank that computes it.
"""

import functools
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_mlp_ds import rng
from sparse_mlp_ds.data.text_format import TextFormat

IGNORED = -100
"""Target of a column that masks nothing, in a row with fewer tokens than the others."""
HELD_OUT_SEED = 0
"""Held-out sequences are masked the same way in every run, so that perplexities can be compared."""


@dataclass(frozen=True)
class Masked:
    """B sequences of n tokens, in which up to m tokens each are to be restored."""

    inputs: Tensor
    """[B, n] int64, the tokens that the model sees."""
    places: Tensor
    """[B, m] int64, positions of the tokens to be restored, in random order; 0 where `targets` is IGNORED."""
    targets: Tensor
    """[B, m] int64, the tokens that were there; IGNORED in the last columns of rows with fewer tokens."""


def keys_of_held_out(numbers: Tensor) -> Tensor:
    """Return the keys [B] by which held-out sequences are masked, given their numbers [B] in the index."""
    return rng.sample_keys(HELD_OUT_SEED, numbers, "held-out masks")


def mask(tokens: Tensor, keys: Tensor, text: TextFormat, share: float = 0.15) -> Masked:
    """Hide tokens of each sequence; special tokens are never chosen.

    A row of t tokens, padding not counted, has round(share x t) places, at least 1, as far as it has tokens that are
    not special. The places are those with the smallest of n draws, of equal ones the first. With probability 0.8 a
    place becomes `[MASK]`, with 0.1 any token of the vocabulary, and with 0.1 it stays.

    Args:
        tokens: [B, n] int64.
        keys: [B] int64, one for each sample, from `rng.sample_keys`.
        text: what the rows are.
        share: share of the tokens.
    """
    count = max(round(share * tokens.shape[1]), 1)
    # Number by number: a tensor of them would be copied to the GPU, which the host waits for.
    special = functools.reduce(operator.or_, (tokens == number for number in text.special.values()))
    draws = rng.uniform(keys, rng.stream_id("mask places"), tokens.shape[1]).masked_fill(special, 2.0)
    places = draws.argsort(dim=1, stable=True)[:, :count]
    filled = (tokens != text.special["pad"]).sum(dim=1)
    wanted = (share * filled).round().clamp(min=1).minimum((~special).sum(dim=1))
    real = torch.arange(places.shape[1], device=tokens.device) < wanted[:, None]
    places = places.masked_fill(~real, 0)
    targets = tokens.gather(1, places)
    fate = rng.uniform(keys, rng.stream_id("mask fates"), places.shape[1])
    drawn = rng.uniform(keys, rng.stream_id("mask tokens"), places.shape[1]).double() * text.vocabulary
    shown = torch.where(fate < 0.9, drawn.long(), targets).masked_fill(fate < 0.8, text.special["mask"])
    # A column without a place would write to position 0: it goes to a column behind the row, which is cut off.
    behind = places.masked_fill(~real, tokens.shape[1])
    inputs = torch.cat([tokens, tokens[:, :1]], dim=1).scatter(1, behind, shown)[:, :-1]
    return Masked(inputs, places, targets.masked_fill(~real, IGNORED))
