"""LAMB and LARS: updates scaled, tensor by tensor, by a trust ratio ||w|| / ||update||.

ZeRO hands an optimizer one flat piece of many tensors. Here a piece knows which run of it belongs to which tensor, and
norms are summed over the ranks that share a tensor; so each tensor, and each expert, gets the ratio that it would get
on a single process.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where a group's tensors lie in the flat piece of them that one rank holds."""

    runs: tuple[tuple[int, int, int], ...]
    """(tensor number, first element, elements) of each run."""
    tensors: int
    """Tensors of the whole group."""
    reduce: Callable[[Tensor], None]
    """Sums a vector over the ranks that share the group, in place."""


class LayerwiseOptimizer(torch.optim.Optimizer):
    """What LAMB and LARS have in common."""

    layouts: dict[Tensor, Layout]
    """Of flat pieces; a tensor without one is whole. Filled by `engine.build` when ZeRO has cut the groups."""

    def __init__(self, groups, **defaults):
        self.layouts = {}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter. Collective under ZeRO: all ranks step together."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, self.state[parameter], group)

    def update(self, parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
        """Apply one step to a parameter, or to a flat piece of many."""
        raise NotImplementedError

    def scaled(self, parameter: Tensor, update: Tensor, group: dict, trust: float) -> Tensor:
        """Return `update` times trust x ||w|| / ||update|| per tensor, 1 where either norm is 0.

        Vectors (biases, norms), which do not decay either, are not scaled: the reference code of both.
        """
        if group["vectors"]:
            return update
        layout = self.layouts.get(parameter) or Layout(((0, 0, parameter.numel()),), 1, lambda sums: None)
        flat, flat_update = parameter.reshape(-1), update.reshape(-1)
        sums = flat.new_zeros(2, layout.tensors)
        for number, first, count in layout.runs:
            part = slice(first, first + count)
            sums[0, number] += flat[part].square().sum()
            sums[1, number] += flat_update[part].square().sum()
        layout.reduce(sums)
        weight, change = sums.sqrt()
        ratios = torch.where((weight > 0) & (change > 0), trust * weight / change, 1.0)
        result = flat_update.clone()
        for number, first, count in layout.runs:
            result[first : first + count] *= ratios[number]
        return result.view_as(update)


class Lamb(LayerwiseOptimizer):
    """LAMB (You et al., 2020, algorithm 2) with bias correction and phi the identity."""

    def __init__(self, groups, lr: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6):
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=0.0)

    def update(self, parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
        """w <- w - lr r u, u = m / (sqrt(v) + eps) + decay w."""
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        m = state["exp_avg"].lerp_(parameter.grad, 1 - first)
        v = state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - second)
        steps = state["step"].item()
        update = (m / (1 - first**steps)) / ((v / (1 - second**steps)).sqrt_() + group["eps"])
        update.add_(parameter, alpha=group["weight_decay"])
        parameter.sub_(self.scaled(parameter, update, group, 1.0), alpha=group["lr"])


class Lars(LayerwiseOptimizer):
    """LARS (You, Gitman and Ginsburg, 2017) with the momentum on the scaled update, as MoCo v3's reference code."""

    def __init__(self, groups, lr: float = 0.0, momentum: float = 0.9, trust: float = 0.001):
        super().__init__(groups, lr=lr, momentum=momentum, trust=trust, weight_decay=0.0)

    def update(self, parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
        """b <- momentum b + r (g + decay w), w <- w - lr b."""
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        update = parameter.grad.add(parameter, alpha=group["weight_decay"])
        scaled = self.scaled(parameter, update, group, group["trust"])
        parameter.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(scaled), alpha=group["lr"])
