"""The DeepSpeed engine of one training stage, and what DeepSpeed must be told so that it trains what was meant."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.models.registry import MakeMoE
from sparse_mlp_ds.models.spec import MoESpec
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.recipe import Evaluate, MoE, Optimizer
from sparse_mlp_ds.train.groups import RateScale, parameter_groups
from sparse_mlp_ds.train.layerwise import Lamb, Lars, LayerwiseOptimizer, Layout


def init_deepspeed() -> None:
    """Let DeepSpeed join the process group; its chatter is kept to warnings."""
    # On a CPU, DeepSpeed would compile an all-reduce through shared memory that only inference uses, for a minute at
    # the first launch, and leave 66 MB of it per rank in /dev/shm after every run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(verbose=False)


def expert_parallel(moe: MoE, ep_sizes: dict[str, int], evaluate: Evaluate | None = None) -> MakeMoE:
    """Return a builder of MoE layers whose experts are spread over `ep_sizes[mixing type]` ranks.

    evaluate: an evaluation whose capacity and priority take the place of the recipe's.
    """

    def make(kind: str, dim: int, spec: MoESpec, dropout: float) -> ExpertParallelMoE:
        routing = moe.routing(kind, evaluate.capacity_factor, evaluate.priority) if evaluate else moe.routing(kind)
        shape = (dim, spec.experts, spec.top_k, lambda: Mlp(dim, spec.hidden, dropout))
        return ExpertParallelMoE(*shape, routing, dropout > 0, ep_size=ep_sizes[kind])

    return make


def join_expert_groups(module: nn.Module) -> None:
    """Give MoE layers their process groups where no engine does so (momentum net, evaluation)."""
    for layer in module.modules():
        if isinstance(layer, ExpertParallelMoE):
            layer.set_deepspeed_parallelism()


def build(
    module: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    ds_config: dict[str, Any],
    rate_scale: RateScale = lambda name: 1.0,
) -> deepspeed.DeepSpeedEngine:
    """Wrap a stage's module for training; its learning rate is set step by step, see `set_learning_rate`.

    rate_scale: a parameter's name -> its rate over the stage's.
    """
    update = _update_rule(optimizer, parameter_groups(module, optimizer.weight_decay, rate_scale))
    config = ds_config | {
        "train_batch_size": batch.total,
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": ds_config.get("steps_per_print"),
    }
    plain = zero_stage(ds_config) == 0
    if plain:
        config["gradient_clipping"] = ds_config["gradient_clipping"] or math.inf  # so that the norm is always taken
    engine, *_ = deepspeed.initialize(model=module, optimizer=update, config=config)
    if plain:
        engine.clip_fp32_gradients = lambda: _clip_exactly(engine)
    else:
        engine.optimizer.check_grad_overflow = True  # off by default in float32 and bf16
        if isinstance(update, LayerwiseOptimizer):
            update.layouts = _layouts(engine.optimizer)
    return engine


def _update_rule(optimizer: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match optimizer.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=optimizer.momentum)
        case "lamb":
            return Lamb(groups, betas=optimizer.betas)
        case "lars":
            return Lars(groups, momentum=optimizer.momentum)


def _layouts(zero: Any) -> dict[Tensor, Layout]:
    """Return which run of each of ZeRO's flat pieces on this rank belongs to which tensor of its group."""
    layouts = {}
    for number, piece in enumerate(zero.single_partition_of_fp32_groups):
        runs = [
            (place, parameter._hp_mapping.hp_fragment_address.start, parameter._hp_mapping.hp_fragment_address.numel)
            for place, parameter in enumerate(zero.bit16_groups[number])
            if parameter._hp_mapping is not None
        ]
        group = zero.real_dp_process_group[number]
        reduce = lambda sums, group=group: torch_dist.all_reduce(sums, group=group)  # noqa: E731
        layouts[piece] = Layout(tuple(runs), len(zero.bit16_groups[number]), reduce)
    return layouts


def zero_stage(ds_config: dict[str, Any]) -> int:
    """Return the ZeRO stage that a DeepSpeed JSON asks for."""
    return ds_config.get("zero_optimization", {}).get("stage", 0)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Set the rate of the coming step in every group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def grad_norm(engine: deepspeed.DeepSpeedEngine) -> float:
    """Return the global gradient norm of the last step, before clipping."""
    return float(engine.get_global_grad_norm() or 0.0)


def masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and float32 value. Collective under bf16 or fp16: call it on all ranks alike."""
    for name, parameter in engine.module.named_parameters():
        if parameter.dtype == torch.float32:
            yield name, parameter.detach()
        else:
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            yield name, parameter.detach().float() if full is None else full


def _clip_exactly(engine: deepspeed.DeepSpeedEngine) -> None:
    """Clip by the true global norm without ZeRO, where DeepSpeed averages norms of ranks that hold other experts."""
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    dense = sum((p.grad.square().sum() for p in parameters if getattr(p, "allreduce", True)), torch.zeros(()))
    experts = torch.zeros((), device=engine.device)
    for layer in engine.module.modules():
        if isinstance(layer, ExpertParallelMoE):
            copies = torch_dist.get_world_size() // layer.ep_size  # each expert must count once
            experts += sum(p.grad.square().sum() for p in layer.experts.parameters()) / copies
    torch_dist.all_reduce(experts)
    norm = (dense.to(engine.device) + experts).sqrt()
    engine._global_grad_norm = float(norm)
    engine.optimizer.overflow = not math.isfinite(float(norm))  # DeepSpeed counts the step as skipped
    if engine.optimizer.overflow:
        for parameter in parameters:
            parameter.grad = None
        return
    factor = min(1.0, engine.gradient_clipping() / (float(norm) + 1e-6))
    if factor < 1:
        for parameter in parameters:
            parameter.grad.mul_(factor)
