"""The DeepSpeed engine of one training stage, configured so that DeepSpeed computes exactly the intended update."""

import contextlib
import copy
import importlib
import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Evaluate, Optimizer
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.sparse_mlp import MakeMoE, make_expert
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.train import zero3, zero_launches
from sparse_mlp_ds.train.grad_norms import GradientNorms
from sparse_mlp_ds.train.lamb_lars import Lamb, Lars, LayerwiseOptimizer, Layout
from sparse_mlp_ds.train.param_groups import RateScale, parameter_groups


def init_deepspeed() -> None:
    """Let DeepSpeed join the process group; of its log, only warnings are shown."""
    # On a CPU, DeepSpeed would compile an all-reduce through shared memory that only inference uses, for a minute at
    # the first launch, and leave 66 MB of it per rank in /dev/shm after every run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(verbose=False)


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, whose functions would import torch's compiler for three seconds to be compiled.

    ZeRO imports it at its first step only to see whether it is the optimizer, which it is in no recipe.
    """
    compiler = deepspeed.runtime.compiler
    compile_it, compiler.compile = compiler.compile, lambda *args, **options: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_it


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """Let DeepSpeed forget, at the end of the `with` block, the process groups that it got to know within it.

    It keeps them in global variables, where a second run of the same process would find groups that are no more.
    """
    modules = (deepspeed.utils.groups, deepspeed.comm.comm)
    kinds = (type(None), dict, int, str)
    before = [
        {name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, kinds)}
        for module in modules
    ]
    try:
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            vars(module).update(values)


def expert_parallel(moe: MoE, ep_sizes: dict[str, int], evaluate: Evaluate | None = None) -> MakeMoE:
    """Return a builder of MoE layers whose experts are spread over `ep_sizes[mixing type]` ranks.

    evaluate: an evaluate stage, whose capacity and priority then replace those of the recipe.
    """

    def make(kind: str, dim: int, spec: MoESpec, dropout: float) -> ExpertParallelMoE:
        routing = moe.routing(kind, evaluate.capacity_factor, evaluate.priority) if evaluate else moe.routing(kind)
        shape = (dim, spec.experts, spec.top_k, lambda: make_expert(dim, spec, dropout))
        return ExpertParallelMoE(*shape, routing, dropout > 0, ep_size=ep_sizes[kind])

    return make


def join_expert_groups(module: nn.Module) -> None:
    """Give MoE layers their process groups where no engine does it: in the momentum encoder and in evaluation."""
    for layer in module.modules():
        if isinstance(layer, ExpertParallelMoE):
            layer.set_deepspeed_parallelism()


def build(
    module: nn.Module,
    optimizer: Optimizer,
    batch: BatchPlan,
    ds_config: DeepSpeedJson,
    rate_scale: RateScale = lambda name: 1.0,
) -> deepspeed.DeepSpeedEngine:
    """Return a DeepSpeed engine that trains `module`; `set_learning_rate` sets the rate of each step.

    Args:
        module: The network to train.
        optimizer: The stage's optimizer section.
        batch: How the stage's batch is spread over ranks and micro-batches.
        ds_config: The DeepSpeed JSON.
        rate_scale: Returns the learning rate of a parameter, given its name, as a multiple of the stage's rate.
    """
    exempt, expert_scale = optimizer.exempt_vectors, optimizer.expert_lr_scale
    groups = parameter_groups(module, optimizer.weight_decay, rate_scale, exempt, expert_scale)
    update = _update_rule(optimizer, groups)
    config = ds_config.raw | {
        "train_batch_size": batch.micro * batch.accumulation * process_group.world_size(),  # which it insists on
        "train_micro_batch_size_per_gpu": batch.micro,
        "gradient_accumulation_steps": batch.accumulation,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the recipe's update rule also where its state is offloaded
        "steps_per_print": ds_config.raw.get("steps_per_print"),
        # On by default, it makes every step wait for the GPU twice, for a figure that the log has already.
        "timers": {"throughput": {"enabled": "steps_per_print" in ds_config.raw}},
    }
    plain = ds_config.zero_stage == 0
    if plain:
        config["gradient_clipping"] = ds_config.clipping or math.inf  # so that the norm is always taken
    gpu = process_group.device().index  # left alone, DeepSpeed takes that of the rank's number on its host
    args = None if gpu is None else SimpleNamespace(device_rank=gpu)
    _configure_comms_logger(config)
    engine, *_ = deepspeed.initialize(args, model=module, optimizer=update, config=config)
    if ds_config.zero_stage == 3:
        zero3.prepare(engine.optimizer)
    elif not plain:
        engine.optimizer.check_grad_overflow = True  # off by default in float32 and bf16: a bad norm skips the step
        if not engine.optimizer.cpu_offload:
            # The norm says as much as DeepSpeed's look at each tensor, which launches a dozen kernels for each.
            engine.optimizer.check_overflow = lambda partition_gradients=True: None
            zero_launches.copy_together(engine.optimizer)
            zero_launches.clip_together(engine.optimizer)
    if isinstance(update, LayerwiseOptimizer) and not plain:
        update.layouts = (zero3.layouts if ds_config.zero_stage == 3 else _layouts)(engine.optimizer)
    engine.gradient_norms = GradientNorms(engine)
    return engine


def end(engine: deepspeed.DeepSpeedEngine) -> None:
    """Release an engine; if the DeepSpeed JSON has `comms_logger`, print what it counted first. Collective."""
    if deepspeed.comm.comm.comms_logger.enabled:
        deepspeed.comm.log_summary()
    engine.destroy()
    engine.optimizer = None  # or the engine destroys it again, and waits for the device, when Python collects it
    zero3.forget()


def _configure_comms_logger(config: dict[str, Any]) -> None:
    """Leave DeepSpeed's `comms_logger` out of its JSON unless it is enabled, and let it print what `verbose` asks for.

    DeepSpeed takes the mere presence of the section for a yes, and logs each message below the level that is shown.
    """
    section = config.get("comms_logger", {})
    if not section.get("enabled"):
        config.pop("comms_logger", None)
    elif section.get("verbose"):
        for log in (deepspeed_logger, *deepspeed_logger.handlers):
            log.setLevel(logging.INFO)


def _update_rule(optimizer: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    eps: dict[str, Any] = {} if optimizer.eps is None else {"eps": optimizer.eps}
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
    """Return, for each of ZeRO's flat pieces on this rank, which elements belong to which tensor of the group."""
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


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Set the learning rate of the next step in every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def masters(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and float32 value. Collective: call it on all ranks alike.

    The values may be views of what training goes on to change: copy what is to be kept.
    """
    match engine.zero_optimization_stage():
        case 0:
            full = {}
        case 3:
            full = zero3.full_masters(engine.optimizer, engine.device)
        case _:
            full = _full_masters(engine.optimizer)
    for name, parameter in engine.module.named_parameters():
        if parameter in full:
            yield name, full[parameter]
        elif parameter.dtype == torch.float32:
            yield name, parameter.detach()
        else:
            yield name, parameter.detach().float()


def _full_masters(zero: Any) -> dict[Tensor, Tensor]:
    """Return the float32 values of all parameters of lower precision, put together by one all-gather for each group."""
    full: dict[Tensor, Tensor] = {}
    for number, piece in enumerate(zero.single_partition_of_fp32_groups):
        members = zero.round_robin_bit16_groups[number]  # in the order in which ZeRO laid them out
        if members[0].dtype == torch.float32:
            continue
        group = zero.real_dp_process_group[number]
        flat = piece.detach().to(members[0].device)  # offloaded ones are on the CPU
        if (ranks := torch_dist.get_world_size(group=group)) > 1:
            flat, own = flat.new_empty(ranks * flat.numel()), flat
            torch_dist.all_gather_into_tensor(flat, own, group=group)
        parts = flat[: sum(member.numel() for member in members)].split([member.numel() for member in members])
        full |= {member: part.view(member.shape) for member, part in zip(members, parts, strict=True)}
    return full
