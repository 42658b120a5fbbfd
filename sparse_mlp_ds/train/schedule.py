"""What changes with the step, as pure functions of it: nothing is stored that can be computed."""

import math


def learning_rate(step: int, total: int, peak: float, warmup: int, decay: str = "cosine") -> float:
    """Linear warm-up over `warmup` steps, then a fall that reaches 0 after `total`. step: from 0.

    decay: `cosine`, half of one, or `linear`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = min((step - warmup) / max(total - warmup, 1), 1.0)
    return peak * (_half_cosine(passed) if decay == "cosine" else 1 - passed)


def encoder_momentum(step: int, total: int, start: float) -> float:
    """Momentum of the key encoder: m = 1 - (1 - start)(1 + cos(pi step / total)) / 2 (MoCo v3, 4.1)."""
    return 1 - (1 - start) * _half_cosine(step / total)


def _half_cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))
