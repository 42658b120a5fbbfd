"""Perplexity and answers on held-out text: every sequence once, every answer scored."""

import math

import numpy as np
import pytest
import torch

from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.masking import IGNORED, keys_of_held_out, mask
from sparse_mlp_ds.data.questions import Question, Window
from sparse_mlp_ds.train.evaluate_text import (
    LARGEST,
    answer_outcome,
    best_spans,
    context_places,
    masked_outcome,
)
from sparse_mlp_ds.train.masked_lm import masked_loss
from tests.helpers import text_rows

N, V = text_rows.LENGTH, text_rows.VOCABULARY


@pytest.fixture
def index(tmp_path):
    return text_rows.write(tmp_path / "val", text_rows.rows(45))


@pytest.fixture
def data(tmp_path):
    return Data(train=str(tmp_path / "val"), workers=0)


def _probabilities(inputs, places):
    """A model whose logits at a place depend on the tokens around it."""
    left = inputs.gather(1, (places - 1).clamp(min=0))
    return torch.nn.functional.one_hot((left + 1).clamp(max=V - 1), V).double() * 3


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_perplexity_is_that_of_all_hidden_tokens_whatever_the_batch(index, data, batch):
    outcome = masked_outcome(_probabilities, index, data, batch)
    tokens = torch.from_numpy(text_rows.rows(45))
    masked = mask(tokens, keys_of_held_out(torch.arange(45)), index.text)
    logits = _probabilities(masked.inputs, masked.places)
    losses = logits.logsumexp(-1) - logits.gather(2, masked.targets[:, :, None])[:, :, 0]
    metrics = outcome.metrics()
    assert metrics["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-12)
    assert metrics["masked_top1"] == float((logits.argmax(-1) == masked.targets).double().mean())
    assert 0.2 < metrics["masked_top1"] < 1
    assert metrics["sequences"] == 45 and outcome.places == 45 * round(0.15 * N)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(index, data):
    outcome = masked_outcome(lambda inputs, places: torch.zeros(*places.shape, V), index, data, 16)
    assert outcome.metrics()["perplexity"] == pytest.approx(V, rel=1e-6)


def test_logits_that_are_no_numbers_are_misses_and_the_perplexity_stays_a_number(index, data, capsys):
    outcome = masked_outcome(lambda inputs, places: torch.full((*places.shape, V), math.nan), index, data, 16)
    assert outcome.hits == 0 and outcome.loss == LARGEST * outcome.places
    assert math.isfinite(outcome.metrics()["perplexity"])
    assert f"logits of {outcome.places} of {outcome.places} hidden tokens are not numbers" in capsys.readouterr().out


def test_every_sequence_weighs_the_same_however_many_of_its_tokens_are_hidden():
    logits = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[7, 8, 9], [10, IGNORED, IGNORED]])
    each = [torch.nn.functional.cross_entropy(logits[0], targets[0]), -logits[1, 0].log_softmax(-1)[10]]
    assert masked_loss(logits, targets) == pytest.approx(float(sum(each)) / 2, rel=1e-6)
    assert masked_loss(logits, torch.full((2, 3), IGNORED)) == 0


def test_the_best_span_is_that_of_a_search_over_all():
    generator = torch.Generator().manual_seed(1)
    start, end = torch.randn(2, 40, 12, generator=generator).round(decimals=1)  # with equal scores
    allowed = torch.rand(40, 12, generator=generator) < 0.7
    allowed[0] = False
    for longest in (1, 4, 30):
        found = best_spans(start, end, allowed, longest)
        for row in range(40):
            best = (-math.inf, 0, 0)
            for first in range(12):
                for last in range(first, min(first + longest, 12)):
                    score = float(start[row, first].double() + end[row, last].double())
                    if allowed[row, first] and allowed[row, last] and score > best[0]:
                        best = (score, first, last)
            assert found[row, 0] == best[0]
            if best[0] > -math.inf:
                first, last = found[row, 1:].long().tolist()
                assert first == best[1] and 0 <= last - first < longest
                assert float(start[row, first].double() + end[row, last].double()) == best[0]


def test_answers_lie_in_the_window_of_the_context():
    cls, sep, pad = (text_rows.SPECIAL[name] for name in ("cls", "sep", "pad"))
    row = torch.tensor([[cls, 10, 11, sep, 20, 21, 22, sep, pad, pad]])
    assert context_places(row, text_rows.text_format())[0].nonzero()[:, 0].tolist() == [4, 5, 6]


def _row(question, window):
    cls, sep, pad = (text_rows.SPECIAL[name] for name in ("cls", "sep", "pad"))
    row = [cls, *question, sep, *window, sep]
    return row + [pad] * (N - len(row))


CONTEXT = "The red fox saw an owl."
OFFSETS = [(0, 3), (3, 7), (7, 11), (11, 15), (15, 18), (18, 22), (22, 23)]


def _asked(answers_of_second):
    """Two questions about one context, the first with two windows. Tokens of the context are 20 to 26."""
    first = Question("a", "?", CONTEXT, ["red fox"], [Window(0, 3, OFFSETS[:5]), Window(1, 3, OFFSETS[3:])])
    second = Question("b", "?", CONTEXT, answers_of_second, [Window(2, 4, OFFSETS)])
    tokens = [_row([10], range(20, 25)), _row([10], range(23, 27)), _row([11, 12], range(20, 27))]
    return [first, second], tokens


def _logits(starts, ends):
    """Logits [B, n, 2] that give these tokens these scores as first and last ones, {token: score}, all others 0."""

    def scores(tokens, wanted):
        found = torch.zeros(*tokens.shape)
        for token, score in wanted.items():
            found[tokens == token] = score
        return found

    return lambda tokens: torch.stack([scores(tokens, starts), scores(tokens, ends)], dim=2)


RED_FOX_AND_OWL = _logits({21: 3.0, 24: 4.0, 2: 2.0}, {22: 3.0, 25: 1.5, 2: 3.0})
"""Spans `red fox` (6) and `an owl` (5.5) where they are, and 5 for no answer; `red fox saw an owl` is too long."""


@pytest.fixture
def windows(tmp_path):
    """The rows of `_asked`; only the first window of the first question, and the second question, have answers."""
    tokens = np.array(_asked([])[1])
    labels = np.array([4 * N + 5, 0, 8 * N + 9])
    return text_rows.write(tmp_path / "val", tokens, labels, text_rows.text_format("spans"))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_question_gets_the_best_span_of_its_windows_as_it_stands_in_the_context(windows, data, batch):
    questions, tokens = _asked(["an owl"])
    data = data.model_copy(update={"classes": N**2})
    outcome = answer_outcome(RED_FOX_AND_OWL, windows, questions, data, batch, longest=2)
    assert outcome.predictions == {"a": "red fox", "b": "red fox"}
    assert outcome.metrics()["exact_match"] == 0.5 and outcome.metrics()["f1"] == 0.5
    assert outcome.content()["questions"] == 2 and outcome.metrics()["sequences"] == 3
    start, end = RED_FOX_AND_OWL(torch.tensor(tokens)).unbind(2)
    expected = sum(
        torch.nn.functional.cross_entropy(one[None], torch.tensor([place]))
        for one, place in zip([*start, *end], [4, 0, 8, 5, 0, 9], strict=True)
    )
    assert outcome.loss == pytest.approx(float(expected) / 6, rel=1e-6)


def test_no_answer_wins_by_its_score_where_some_questions_have_none(windows, data):
    questions, _ = _asked([])
    data = data.model_copy(update={"classes": N**2})
    outcome = answer_outcome(RED_FOX_AND_OWL, windows, questions, data, 3, longest=2)
    assert outcome.predictions == {"a": "red fox", "b": "red fox"} and outcome.f1 == 0.5
    sure_of_none = _logits({21: 3.0, 2: 4.0}, {22: 3.0, 2: 3.0})
    outcome = answer_outcome(sure_of_none, windows, questions, data, 3, longest=2)
    assert outcome.predictions == {"a": "", "b": ""} and outcome.exact == 0.5
    # Where every question has an answer, none is not one of them.
    outcome = answer_outcome(sure_of_none, windows, _asked(["an owl"])[0], data, 3, longest=2)
    assert outcome.predictions == {"a": "red fox", "b": "red fox"}
