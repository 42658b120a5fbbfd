"""LAMB and LARS: each tensor's update is scaled by its trust ratio ||w|| / ||update||.

ZeRO gives an optimizer flat pieces that hold parts of many tensors. Here each piece knows which of its elements belong
to which tensor, and norms are summed over the ranks that share a tensor; so each tensor, and each expert, gets the
ratio that it would get in a single process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Groups = list[dict[str, Any]]
"""Parameter groups, as torch's optimizers take them."""


@dataclass(frozen=True)
class Layout:
    """Where the tensors of a parameter group lie in the flat piece of the group that one rank holds."""

    runs: tuple[tuple[int, int, int], ...]
    """(number of the tensor, its first element here, number of elements) for each tensor in the piece."""
    tensors: int
    """Number of tensors in the whole group."""
    reduce: Callable[[Tensor], None]
    """Sums a vector over the ranks that share the group, in place."""


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Base of LAMB and LARS."""

    layouts: dict[Tensor, Layout]
    """The layout of each flat piece; a tensor without one is whole. `engine.build` fills it when ZeRO made pieces."""

    def __init__(self, groups: Groups, **defaults: Any):
        self.layouts = {}
        self._constants: dict[Tensor, tuple[Tensor, Tensor]] = {}  # made once: copies to a GPU make the host wait
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure here
        """Update every parameter. Collective under ZeRO: all ranks step together."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """Apply one step to a parameter, or to a flat piece of many."""
        raise NotImplementedError

    def scaled(self, parameter: Tensor, update: Tensor, group: dict[str, Any], trust: float) -> Tensor:
        """Return `update` times trust x ||w|| / ||update|| per tensor, 1 where either norm is 0.

        Vectors (biases, norms), which do not decay either, are not scaled: the reference code of both.
        """
        if group["vectors"]:
            return update
        layout = self.layouts.get(parameter) or Layout(((0, 0, parameter.numel()),), 1, lambda sums: None)
        flat, flat_update = parameter.reshape(-1), update.reshape(-1)
        sums = flat.new_zeros(2, layout.tensors)
        numbers, counts = self._constants_of(parameter, layout)
        if layout.runs:
            parts = [x[first : first + count] for x in (flat, flat_update) for _, first, count in layout.runs]
            sums[:, numbers] = torch.stack(torch._foreach_norm(parts)).square_().view(2, -1)
        layout.reduce(sums)
        weight, change = sums.sqrt()
        ratios = torch.where((weight > 0) & (change > 0), trust * weight / change, 1.0)
        ratios = torch.cat([ratios[numbers], ratios.new_ones(1)])  # the last one is that of padding
        return (flat_update * ratios.repeat_interleave(counts, output_size=flat.numel())).view_as(update)

    def _constants_of(self, parameter: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return a piece's tensors by number, and the lengths of their runs and of the padding, on its device."""
        if parameter not in self._constants:
            numbers, counts = [run[0] for run in layout.runs], [run[2] for run in layout.runs]
            if [run[1] for run in layout.runs] != list(accumulate(counts, initial=0))[:-1]:
                raise ValueError("the tensors of a piece must lie behind one another, from its first element on")
            lengths = [*counts, parameter.numel() - sum(counts)]
            make = lambda values: torch.tensor(values, dtype=torch.int64, device=parameter.device)  # noqa: E731
            self._constants[parameter] = make(numbers), make(lengths)
        return self._constants[parameter]


class Lamb(LayerwiseOptimizer):
    """LAMB (You et al., 2020, algorithm 2) with bias correction and phi the identity."""

    def __init__(self, groups: Groups, lr: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6):
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0)

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """w <- w - lr r u, u = m / (sqrt(v) + eps) + decay w."""
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        m = state["exp_avg"].lerp_(gradient, 1 - first)
        v = state["exp_avg_sq"].lerp_(gradient.square(), 1 - second)
        steps = state["step"].item()
        update = (m / (1 - first**steps)) / ((v / (1 - second**steps)).sqrt_() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(self.scaled(parameter, update, group, 1.0), alpha=group["lr"])


class Lars(LayerwiseOptimizer):
    """LARS (You, Gitman and Ginsburg, 2017) with the momentum on the scaled update, as MoCo v3's reference code."""

    def __init__(self, groups: Groups, lr: float = 0.0, momentum: float = 0.9, trust: float = 0.001):
        super().__init__(groups, lr=lr, momentum=momentum, trust=trust, weight_decay=0.0)

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """b <- momentum b + r (g + decay w), w <- w - lr b."""
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        update = gradient.add(parameter, alpha=group["weight_decay"])
        scaled = self.scaled(parameter, update, group, group["trust"])
        parameter.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(scaled), alpha=group["lr"])
