"""A training stage's state as named pieces of tensors that do not depend on the topology, and back.

Each rank contributes what it owns, without communication: its fragments of ZeRO's float32 masters and optimizer
moments, its experts under their global ids, and its share of the tensors that all ranks hold. When it reads, a rank
asks for the pieces it needs; so every world size, ep_size and ZeRO stage can continue what any other one wrote.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE
from sparse_mlp_ds.train import zero3
from sparse_mlp_ds.train.zero3 import Fragment

Read = Callable[[str, int, int], Tensor]
"""A function (tensor name, first element, number of elements) -> those elements as a flat tensor."""


_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def pieces(engine: deepspeed.DeepSpeedEngine, extra: nn.Module | None) -> Iterator[Piece]:
    """Yield the pieces that this rank must write.

    Names are `param/NAME` (float32 masters), `<moment>/NAME` (as the optimizer calls it: exp_avg, ...) and, for the
    module `extra` that is not in the engine, `momentum/NAME`. Call it after at least one optimizer step.
    """
    fragments, share = _fragments(engine), _share_of_replicas(engine.module)
    for name, parameter in engine.module.named_parameters():
        if _is_partitioned(engine, parameter):
            if parameter in fragments:
                yield from _pieces(name, zero3.shape(parameter), fragments[parameter])
        elif name in share:
            yield _whole(f"param/{name}", parameter)
            for moment, values in _plain_moments(engine, parameter):
                yield _whole(f"{moment}/{name}", values)
    if extra is not None:
        share = _share_of_replicas(extra)
        for name, parameter in extra.named_parameters():
            if name in share:
                yield _whole(f"momentum/{name}", parameter)


def restore(engine: deepspeed.DeepSpeedEngine, extra: nn.Module | None, read: Read, steps: int) -> None:
    """Fill masters, parameters, optimizer state and `extra` from pieces. steps: optimizer updates made so far."""
    zero = _zero_optimizer(engine)
    stage = engine.zero_optimization_stage()
    with zero3.whole_optimizer(zero) if stage == 3 else nullcontext():
        _allocate_optimizer_state(zero.optimizer if zero else engine.optimizer, steps)
    fragments = _fragments(engine)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            if stage < 3:
                parameter.copy_(read(f"param/{name}", 0, parameter.numel()).view_as(parameter))
            if parameter in fragments:
                _restore_fragment(name, fragments[parameter], read)
            for moment, values in _plain_moments(engine, parameter):
                values.copy_(read(f"{moment}/{name}", 0, values.numel()).view_as(values))
        if stage == 3:
            zero3.publish(zero)
        if extra is not None:
            for name, parameter in extra.named_parameters():
                parameter.copy_(read(f"momentum/{name}", 0, parameter.numel()).view_as(parameter))


def loss_scale(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return the state of fp16's dynamic loss scale; empty under every other precision."""
    scaler = getattr(_zero_optimizer(engine), "loss_scaler", None)
    return {name: getattr(scaler, name) for name in _LOSS_SCALE if hasattr(scaler, name)}


def restore_loss_scale(engine: deepspeed.DeepSpeedEngine, scale: dict[str, float]) -> None:
    """Set the state of fp16's dynamic loss scale; without one, as after a different precision, it starts fresh."""
    scaler = getattr(_zero_optimizer(engine), "loss_scaler", None)
    for name in _LOSS_SCALE:
        if hasattr(scaler, name) and name in scale:
            setattr(scaler, name, scale[name])


def load_weights(module: nn.Module, names: dict[str, str], read: Read) -> None:
    """Fill parameters of a module that is in no engine yet. names: parameter name -> tensor name."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in names:
                parameter.copy_(read(names[name], 0, parameter.numel()).view_as(parameter))


def _whole(name: str, values: Tensor) -> Piece:
    return Piece(name, tuple(values.shape), 0, values.detach().flatten())


def _is_partitioned(engine: deepspeed.DeepSpeedEngine, parameter: Tensor) -> bool:
    """Return whether the ranks hold fragments of a parameter, of which this rank may have none."""
    stage = engine.zero_optimization_stage()
    return stage == 3 or (stage > 0 and parameter.requires_grad)


def _fragments(engine: deepspeed.DeepSpeedEngine) -> dict[Tensor, Fragment]:
    """Return this rank's fragment of each partitioned parameter of which it has one."""
    zero = _zero_optimizer(engine)
    if zero is None:
        return {}
    if engine.zero_optimization_stage() == 3:
        return zero3.fragments(zero)
    _link_optimizer_state(zero)
    found = {}
    for parameter in engine.module.parameters():
        if parameter.requires_grad and (mapping := parameter._hp_mapping) is not None:
            moments = {name: mapping.get_optim_state_fragment(name) for name in mapping.get_optim_state_keys()}
            found[parameter] = Fragment(mapping.lp_fragment_address.start, mapping.hp_fragment, moments)
    return found


def _pieces(name: str, shape: tuple[int, ...], fragment: Fragment) -> Iterator[Piece]:
    """Yield a fragment of a parameter's master and of its moments. shape: of the whole parameter."""
    yield Piece(f"param/{name}", shape, fragment.start, fragment.master)
    for moment, values in fragment.moments.items():
        yield Piece(f"{moment}/{name}", shape, fragment.start, values)


def _restore_fragment(name: str, fragment: Fragment, read: Read) -> None:
    start, numel = fragment.start, fragment.master.numel()
    fragment.master.copy_(read(f"param/{name}", start, numel))
    for moment, values in fragment.moments.items():
        values.copy_(read(f"{moment}/{name}", start, numel))


def _share_of_replicas(module: nn.Module) -> set[str]:
    """Return the names of the parameters that this rank writes, among those that several ranks hold."""
    layer_of: dict[Tensor, ExpertParallelMoE] = {}
    for layer in module.modules():
        if isinstance(layer, ExpertParallelMoE):
            layer_of |= dict.fromkeys(layer.experts.parameters(), layer)
    share = set()
    for position, (name, parameter) in enumerate(module.named_parameters()):
        # Experts are alike on ranks ep_size apart, everything else on all ranks.
        ep_size = layer_of[parameter].ep_size if parameter in layer_of else 1
        if position % (process_group.world_size() // ep_size) == process_group.rank() // ep_size:
            share.add(name)
    return share


def _plain_moments(engine: deepspeed.DeepSpeedEngine, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a parameter's moments where the optimizer is torch's own (ZeRO 0)."""
    if _zero_optimizer(engine) is None:
        for name, values in engine.optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(values) and values.shape == parameter.shape:
                yield name, values


def _zero_optimizer(engine: deepspeed.DeepSpeedEngine) -> Any:
    """Return DeepSpeed's ZeRO optimizer, or None where the optimizer is torch's own."""
    return engine.optimizer if engine.zero_optimization_stage() > 0 else None


def _link_optimizer_state(zero: Any) -> None:
    """Tie every parameter's fragment to its optimizer state, under ZeRO-1 and 2.

    DeepSpeed 0.19.8 does so once, after the first group's first step, when the later groups (the experts) have no state
    yet, and never again; tests/ranks hold this against a new release.
    """
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def _allocate_optimizer_state(base: torch.optim.Optimizer, steps: int) -> None:
    """Let a fresh optimizer make its state, by a step of rate 0 with zero gradients, and set its step count."""
    rates = [group["lr"] for group in base.param_groups]
    gradients = {p: p.grad for group in base.param_groups for p in group["params"]}  # with offload they are buffers
    for group in base.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    base.step()
    for group, rate in zip(base.param_groups, rates, strict=True):
        group["lr"] = rate
        for parameter in group["params"]:
            parameter.grad = gradients[parameter]
            count = base.state[parameter].get("step")
            if torch.is_tensor(count):
                count.fill_(steps)
