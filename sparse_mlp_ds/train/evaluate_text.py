"""Exact evaluation on text: perplexity of masked language models, and answers to questions.

Every held-out sequence counts exactly once, on any number of ranks and in batches of any size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.data import answers
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.masking import IGNORED, keys_of_held_out, mask
from sparse_mlp_ds.data.questions import Question
from sparse_mlp_ds.data.spans import best_spans, context_places
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train.evaluate import batches

LARGEST = 700.0
"""Cross-entropy of a token, nats, above which it is not told apart, so that no perplexity overflows. A token whose
logits are not numbers (NaN) has it, too."""


@dataclass(frozen=True)
class MaskedOutcome:
    """How a masked language model restored the hidden tokens of all sequences of an index, as sums."""

    loss: float
    """Sum of the cross-entropies of the hidden tokens, nats."""
    hits: int
    """Hidden tokens that the model finds the most likely ones."""
    places: int
    """Number of hidden tokens."""
    sequences: int
    """Number of sequences."""

    def metrics(self) -> dict[str, float]:
        """Return `perplexity` = exp(mean cross-entropy), `masked_top1` as a share in [0, 1], the mean `loss` in nats,
        and the number of `sequences`."""
        loss, top1 = self.loss / max(self.places, 1), self.hits / max(self.places, 1)
        return {"perplexity": math.exp(loss), "masked_top1": top1, "loss": loss, "sequences": self.sequences}

    def content(self) -> dict[str, Any]:
        """Return the content of RUN/STAGE.json."""
        return self.metrics() | {"masked_tokens": self.places}


@torch.no_grad()
def masked_outcome(
    forward: Callable[[Tensor, Tensor], Tensor],
    index: Index,
    data: Data,
    batch_size: int,
    share: float = 0.15,
    tell: bool = True,
) -> MaskedOutcome:
    """Let a masked language model restore the hidden tokens of an index's sequences. Collective.

    Which tokens are hidden depends on each sequence's number alone.

    Args:
        forward: Returns logits [B, m, V] of tokens [B, n] at places [B, m].
        index: The sequences.
        data: The recipe's data section.
        batch_size: Sequences per forward pass, over all ranks.
        share: Share of the tokens that is hidden.
        tell: Whether to name the sequences that cannot be read.
    """
    assert index.text is not None
    sums = torch.zeros(5, dtype=torch.float64, device=process_group.device())
    for tokens, _, numbers in batches(index, data, None, batch_size, tell):
        masked = mask(tokens, keys_of_held_out(numbers), index.text, share)
        logits = forward(masked.inputs, masked.places).flatten(0, 1)
        targets = masked.targets.masked_fill((numbers < 0)[:, None], IGNORED).flatten()  # padding is masked
        losses = token_losses(logits, targets)
        undefined = losses.isnan()
        hits = (logits.argmax(dim=1) == targets) & ~undefined
        losses = losses.double().nan_to_num(nan=LARGEST).clamp(max=LARGEST)
        counts = [losses.sum(), hits.sum(), (targets != IGNORED).sum(), (numbers >= 0).sum(), undefined.sum()]
        sums += torch.stack([count.double() for count in counts])
    loss, *counted = comm.all_reduce(sums).tolist()
    hit, places, sequences, bad = map(int, counted)
    if bad and process_group.rank() == 0:
        say(f"WARNING: the logits of {bad} of {places} hidden tokens are not numbers (NaN); they count as misses")
    return MaskedOutcome(loss, hit, places, sequences)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each token in nats, [M]; 0 where the target is IGNORED.

    logits: [M, V]. targets: [M].
    """
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(precise, targets, ignore_index=IGNORED, reduction="none")


@dataclass(frozen=True)
class AnswerOutcome:
    """The answers that a model gives to all questions of an index, and their scores."""

    exact: float
    """Share of the questions answered exactly."""
    f1: float
    """Mean F1 of the answers."""
    loss: float
    """Mean loss of the windows, nats."""
    predictions: dict[str, str]
    """Each question's answer by the question's id; empty where the model finds none."""
    sequences: int
    """Number of windows."""

    def metrics(self) -> dict[str, float]:
        """Return `f1` and `exact_match` as shares in [0, 1], the mean `loss`, and the number of `sequences`."""
        return {"f1": self.f1, "exact_match": self.exact, "loss": self.loss, "sequences": self.sequences}

    def content(self) -> dict[str, Any]:
        """Return the content of RUN/STAGE.json; `predictions` is what SQuAD's own script scores."""
        return self.metrics() | {"questions": len(self.predictions), "predictions": self.predictions}


@torch.no_grad()
def answer_outcome(
    forward: Callable[[Tensor], Tensor],
    index: Index,
    questions: Sequence[Question],
    data: Data,
    batch_size: int,
    longest: int,
    tell: bool = True,
) -> AnswerOutcome:
    """Let a model answer an index's questions, and score the answers by SQuAD's rules. Collective.

    A question's answer is the best span over all of its windows. Where some of the questions have no answer, as in
    SQuAD 2.0, the empty answer wins if its score, the lowest one of `[CLS]` over the windows, is higher than the best
    span's (Devlin et al., 2019, 4.3, with threshold 0).

    Args:
        forward: Returns logits [B, n, 2] of tokens [B, n].
        index: The windows.
        questions: Those behind the windows.
        data: The recipe's data section.
        batch_size: Windows per forward pass, over all ranks.
        longest: Most tokens of an answer.
        tell: Whether to name the windows that cannot be read.
    """
    assert index.text is not None
    found = []
    for tokens, labels, numbers in batches(index, data, None, batch_size, tell):
        start, end = forward(tokens).unbind(dim=2)
        spans = best_spans(start, end, context_places(tokens, index.text), longest)
        null, losses = start[:, 0].double() + end[:, 0].double(), span_losses(start, end, labels)
        found.append(torch.cat([numbers[:, None].double(), spans, null[:, None], losses[:, None].double()], dim=1))
    rows = comm.all_gather(torch.cat(found)).cpu()
    rows = rows[rows[:, 0] >= 0]
    rows = rows[rows[:, 0].argsort()]
    predictions = _answers(rows, questions)
    scored = [(predictions[one.id], one.answers) for one in questions]
    exact, f1 = (sum(rule(*pair) for pair in scored) / len(scored) for rule in (answers.exact_match, answers.f1))
    return AnswerOutcome(exact, f1, float(rows[:, 5].mean()), predictions, len(rows))


def span_losses(start: Tensor, end: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of both ends' cross-entropies, [B].

    start, end: [B, n]. labels: [B], first place x n + last place; 0, both at `[CLS]`, where the answer is not there.
    """
    length = start.shape[1]
    first, last = labels.clamp(min=0) // length, labels.clamp(min=0) % length
    both = (F.cross_entropy(logits.float(), place, reduction="none") for logits, place in ((start, first), (end, last)))
    return torch.stack(list(both)).mean(dim=0)


def _answers(rows: Tensor, questions: Sequence[Question]) -> dict[str, str]:
    """Return each question's answer by its id.

    rows: [windows, 6]: number, best score, its first and last place, score of no answer, loss.
    """
    by_number = {int(row[0]): row for row in rows.tolist()}
    may_be_empty = any(not question.answers for question in questions)
    predictions = {}
    for question in questions:
        best, answer, none = -math.inf, "", math.inf
        for window in question.windows:
            if window.row not in by_number:  # it could not be read
                continue
            _, score, first, last, null, _ = by_number[window.row]
            none = min(none, null)
            if score > best:
                begin, end = window.offsets[int(first) - window.first][0], window.offsets[int(last) - window.first][1]
                best, answer = score, question.context[begin:end].strip()
        predictions[question.id] = "" if may_be_empty and none > best else answer
    return predictions
