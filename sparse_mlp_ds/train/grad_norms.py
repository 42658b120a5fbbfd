"""The norm of a step's gradients over all ranks, each expert counted once: of all parameters and by their kind."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as torch_dist
from torch import Tensor

from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.moe.router import Router

KINDS = ("dense", "experts", "router")


class GradientNorms:
    """Records the norm before clipping; at ZeRO-0 it also clips, because DeepSpeed would average norms over experts."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine):
        self.engine = engine
        self._squares: dict[str, Tensor] = {}
        if engine.zero_optimization_stage() == 0:
            engine.clip_fp32_gradients = self._clip
        else:
            self._watch(engine.optimizer)

    def read(self) -> dict[str, float]:
        """Return the last step's norms before clipping: `grad_norm`, and those of its kinds of parameters."""
        total = float(self.engine.get_global_grad_norm() or 0.0)
        squares = {kind: float(square) for kind, square in self._squares.items()}
        # What was watched still has fp16's loss scale in it; the shares have not.
        whole = sum(squares.values())
        known = math.isfinite(whole) and whole > 0
        return {"grad_norm": total} | {
            f"grad_norm_{kind}": total * math.sqrt(square / whole) for kind, square in squares.items() if known
        }

    def _watch(self, zero: Any) -> None:
        """Keep the norm of each parameter group as ZeRO computes it, one after the other in every step."""
        kinds = [_kind(group) for group in zero.optimizer.param_groups]
        if self.engine.zero_optimization_stage() == 3:  # which may have cut groups into several
            kinds = [kinds[group] for _, group in sorted(zero.sub_group_to_group_id.items())]
            offloads = zero.offload_optimizer
        else:
            offloads = zero.cpu_offload
        own = "complete_grad_norm_calculation_for_cpu_offload" if offloads else "get_grad_norm_direct"
        norm_of_group: Callable[..., Any] = getattr(zero, own) if offloads else partial(_norm_of_group, zero)
        done: list[Tensor] = []

        def kept(*args: Any, **kwargs: Any) -> Tensor:
            norm = norm_of_group(*args, **kwargs)
            done.append(torch.as_tensor(norm).detach().square())
            if len(done) == len(kinds):
                of_kind = {kind: torch.zeros_like(done[0]) for kind in KINDS if kind in kinds}
                for kind, square in zip(kinds, done, strict=True):
                    of_kind[kind] = of_kind[kind] + square
                self._squares = of_kind
                done.clear()
            return norm

        setattr(zero, own, kept)

    def _clip(self) -> None:
        engine = self.engine
        copies: dict[Tensor, int] = {}  # ranks that hold the same expert
        routers = set()
        for module in engine.module.modules():
            if isinstance(module, ExpertParallelMoE):
                alike = torch_dist.get_world_size() // module.ep_size
                copies |= dict.fromkeys(module.experts.parameters(), alike)
            elif isinstance(module, Router):
                routers.add(module.weight)
        parameters = [p for p in engine.module.parameters() if p.grad is not None]
        squares = {kind: torch.zeros((), device=engine.device) for kind in KINDS}
        for parameter in parameters:
            kind = "experts" if parameter in copies else "router" if parameter in routers else "dense"
            squares[kind] += parameter.grad.float().square().sum() / copies.get(parameter, 1)
        torch_dist.all_reduce(squares["experts"])
        self._squares = squares if copies else {"dense": squares["dense"]}
        norm = torch.stack(list(squares.values())).sum().sqrt()
        engine._global_grad_norm = float(norm)
        engine.optimizer.overflow = not math.isfinite(float(norm))  # DeepSpeed counts the step as skipped
        if engine.optimizer.overflow:
            for parameter in parameters:
                parameter.grad = None
            return
        factor = min(1.0, engine.gradient_clipping() / (float(norm) + 1e-6))
        if factor < 1:
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(factor)


def _norm_of_group(zero: Any, gradients: Sequence[Tensor], parameters: object, norm_type: float = 2) -> Tensor:
    """Return what ZeRO's `get_grad_norm_direct` does, without a few kernels and two waits for every tensor.

    Squares are added up in float64, as there: in float32 the clipped gradients would be different ones.
    """
    real = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]
    square = torch.zeros((), device=zero.device)
    if real:
        square = torch.stack(torch._foreach_norm(real, 2, dtype=torch.float64)).square().sum().float()
    torch_dist.all_reduce(square, group=zero.dp_process_group)
    return square.sqrt()


def _kind(group: dict[str, Any]) -> str:
    return "experts" if group.get("moe") else "router" if group["name"].startswith("router") else "dense"
