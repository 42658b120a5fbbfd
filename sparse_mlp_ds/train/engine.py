"""The DeepSpeed engine of one training stage, and what DeepSpeed must be told so that it trains what was meant."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.models.registry import MakeMoE
from sparse_mlp_ds.models.spec import MoESpec
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.recipe import MoE
from sparse_mlp_ds.stages import Evaluate, Optimizer
from sparse_mlp_ds.train.gradient_norms import GradientNorms
from sparse_mlp_ds.train.groups import RateScale, parameter_groups
from sparse_mlp_ds.train.layerwise import Lamb, Lars, LayerwiseOptimizer, Layout


def init_deepspeed() -> None:
    """Let DeepSpeed join the process group; its chatter is kept to warnings."""
    # On a CPU, DeepSpeed would compile an all-reduce through shared memory that only inference uses, for a minute at
    # the first launch, and leave 66 MB of it per rank in /dev/shm after every run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(verbose=False)


def check_precision(ds_config: dict[str, Any]) -> None:
    """Raise UserError if the devices do not know fp16; only where training runs can that be said. Collective."""

    def check() -> None:
        wanted = ds_config.get("fp16", {}).get("enabled", False)
        if wanted and not get_accelerator().is_fp16_supported():
            name = get_accelerator().device_name()
            raise UserError(f"--ds_config: fp16.enabled: this machine's {name} does not train in fp16; use bf16")

    dist.on_rank_zero(check)


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
        "train_batch_size": batch.micro * batch.accumulation * dist.world_size(),  # which it insists on
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the recipe's update rule also where its state is offloaded
        "steps_per_print": ds_config.get("steps_per_print"),
    }
    plain = zero_stage(ds_config) == 0
    if plain:
        config["gradient_clipping"] = ds_config["gradient_clipping"] or math.inf  # so that the norm is always taken
    engine, *_ = deepspeed.initialize(model=module, optimizer=update, config=config)
    if not plain:
        engine.optimizer.check_grad_overflow = True  # off by default in float32 and bf16
        if isinstance(update, LayerwiseOptimizer):
            update.layouts = _layouts(engine.optimizer)
    engine.gradient_norms = GradientNorms(engine)
    return engine


def _update_rule(optimizer: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    eps = {} if optimizer.eps is None else {"eps": optimizer.eps}
    match optimizer.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, fused=True, **eps)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=optimizer.momentum)
        case "lamb":
            return Lamb(groups, betas=optimizer.betas, **eps)
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


def masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and float32 value. Collective under bf16 or fp16: call it on all ranks alike."""
    for name, parameter in engine.module.named_parameters():
        if parameter.dtype == torch.float32:
            yield name, parameter.detach()
        else:
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            yield name, parameter.detach().float() if full is None else full
