"""Learning rate and encoder momentum as tables of numbers."""

import math

import pytest

from sparse_mlp_ds.train.schedule import encoder_momentum, learning_rate

HALF = 0.5**0.5

RATES = [
    # step, total, peak, warm-up steps -> rate
    (0, 100, 2.0, 10, 0.2),
    (4, 100, 2.0, 10, 1.0),
    (9, 100, 2.0, 10, 2.0),
    (10, 100, 2.0, 10, 2.0),
    (55, 100, 2.0, 10, 1.0),  # half of the 90 steps that are left
    (100, 100, 2.0, 10, 0.0),
    (0, 8, 1.0, 0, 1.0),  # no warm-up
    (2, 8, 1.0, 0, (1 + HALF) / 2),
    (4, 8, 1.0, 0, 0.5),
    (6, 8, 1.0, 0, (1 - HALF) / 2),
    (9, 8, 1.0, 0, 0.0),  # past the end
    (0, 1, 3.0, 0, 3.0),  # a stage of one step
    (0, 4, 1.0, 8, 0.125),  # a warm-up longer than the stage
    (3, 4, 1.0, 8, 0.5),
    (0, 4, 1.0, 4, 0.25),
    (3, 4, 1.0, 4, 1.0),
]

LINEAR_RATES = [
    # the same under linear decay
    (0, 100, 2.0, 10, 0.2),
    (9, 100, 2.0, 10, 2.0),
    (10, 100, 2.0, 10, 2.0),
    (37, 100, 2.0, 10, 1.4),  # after 27 of the 90 steps that are left
    (55, 100, 2.0, 10, 1.0),
    (82, 100, 2.0, 10, 0.4),
    (99, 100, 2.0, 10, 2.0 / 90),
    (100, 100, 2.0, 10, 0.0),
    (2, 8, 1.0, 0, 0.75),
    (9, 8, 1.0, 0, 0.0),  # past the end
    (0, 1, 3.0, 0, 3.0),
    (3, 4, 1.0, 8, 0.5),  # a warm-up longer than the stage
]

MOMENTA = [
    # step, total, start -> momentum
    (0, 100, 0.99, 0.99),
    (50, 100, 0.99, 0.995),
    (100, 100, 0.99, 1.0),
    (25, 100, 0.9, 1 - 0.1 * (1 + HALF) / 2),
    (75, 100, 0.9, 1 - 0.1 * (1 - HALF) / 2),
    (0, 1, 0.5, 0.5),
    (3, 10, 0.0, 1 - (1 + math.cos(0.3 * math.pi)) / 2),
    (120, 100, 0.99, 1.0),
]


@pytest.mark.parametrize("step, total, peak, warmup, rate", RATES)
def test_learning_rate(step, total, peak, warmup, rate):
    assert learning_rate(step, total, peak, warmup) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("step, total, peak, warmup, rate", LINEAR_RATES)
def test_learning_rate_under_linear_decay(step, total, peak, warmup, rate):
    assert learning_rate(step, total, peak, warmup, "linear") == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("step, total, start, momentum", MOMENTA)
def test_encoder_momentum(step, total, start, momentum):
    assert encoder_momentum(step, total, start) == pytest.approx(momentum, abs=1e-12)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("total, warmup", [(1, 0), (10, 0), (10, 3), (1000, 40)])
def test_the_rate_rises_to_its_peak_and_then_falls_but_stays_positive(total, warmup, decay):
    rates = [learning_rate(step, total, 1.0, warmup, decay) for step in range(total)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == 1.0
    assert min(rates) > 0


def test_the_momentum_rises_all_the_way():
    momenta = [encoder_momentum(step, 50, 0.9) for step in range(51)]
    assert momenta == sorted(set(momenta))
