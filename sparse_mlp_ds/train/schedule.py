"""Learning rate and momentum as pure functions of the step: nothing is stored that can be computed."""

import math


def learning_rate(step: int, total: int, peak: float, warmup: int, decay: str = "cosine", final: float = 0.0) -> float:
    """Return the rate of a step: linear warm-up over `warmup` steps, then decay to `final` at step `total`.

    step counts from 0. decay: `cosine` (half a period) or `linear`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = min((step - warmup) / max(total - warmup, 1), 1.0)
    return final + (peak - final) * (_half_cosine(passed) if decay == "cosine" else 1 - passed)


def encoder_momentum(step: int, total: int, start: float) -> float:
    """Return the momentum of the momentum encoder: m = 1 - (1 - start)(1 + cos(pi step / total)) / 2 (MoCo v3, 4.1)."""
    return 1 - (1 - start) * _half_cosine(step / total)


def _half_cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))
