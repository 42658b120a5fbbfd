"""A training stage's state as named pieces of tensors that know no topology, and back.

Each rank contributes what it owns, without communication: its fragments of ZeRO's float32 masters and optimizer
moments, its experts under their global ids, its share of what all ranks hold alike. Reading, a rank asks for the pieces
it needs; so any world size, ep_size and ZeRO stage 0-2 can continue what any other wrote.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import deepspeed
import torch
from torch import Tensor, nn

from sparse_mlp_ds import dist
from sparse_mlp_ds.moe.expert_parallel import ExpertParallelMoE

Read = Callable[[str, int, int], Tensor]
"""(tensor name, first element, number of elements) -> that part, flat."""


_LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Piece:
    """A run of elements of a named tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    """First element, in row-major order."""
    values: Tensor
    """[n], flat."""


def pieces(engine: deepspeed.DeepSpeedEngine, extra: nn.Module | None) -> Iterator[Piece]:
    """Yield what this rank must write.

    Names are `param/NAME` (float32 masters), `<moment>/NAME` (as the optimizer calls it: exp_avg, ...) and, for the
    module `extra` that is not in the engine, `momentum/NAME`. Call it after at least one optimizer step.
    """
    zero = _zero_optimizer(engine)
    if zero:
        _link_optimizer_state(zero)
    share = _share_of_replicas(engine.module)
    for name, parameter in engine.module.named_parameters():
        shape = tuple(parameter.shape)
        if zero and parameter.requires_grad:
            mapping = parameter._hp_mapping
            if mapping is not None:  # this rank holds a fragment
                start = mapping.lp_fragment_address.start
                yield Piece(f"param/{name}", shape, start, mapping.hp_fragment)
                for moment in mapping.get_optim_state_keys():
                    yield Piece(f"{moment}/{name}", shape, start, mapping.get_optim_state_fragment(moment))
        elif name in share:
            yield Piece(f"param/{name}", shape, 0, parameter.detach().flatten())
            for moment, values in _plain_moments(engine, parameter):
                yield Piece(f"{moment}/{name}", shape, 0, values.flatten())
    if extra is not None:
        share = _share_of_replicas(extra)
        for name, parameter in extra.named_parameters():
            if name in share:
                yield Piece(f"momentum/{name}", tuple(parameter.shape), 0, parameter.detach().flatten())


def restore(engine: deepspeed.DeepSpeedEngine, extra: nn.Module | None, read: Read, steps: int) -> None:
    """Fill masters, parameters, optimizer state and `extra` from pieces. steps: updates made so far."""
    zero = _zero_optimizer(engine)
    base = zero.optimizer if zero else engine.optimizer
    _allocate_optimizer_state(base, steps)
    if zero:
        _link_optimizer_state(zero)
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            parameter.copy_(read(f"param/{name}", 0, parameter.numel()).view_as(parameter))
            if zero and parameter.requires_grad and parameter._hp_mapping is not None:
                _restore_fragment(name, parameter._hp_mapping, read)
            for moment, values in _plain_moments(engine, parameter):
                values.copy_(read(f"{moment}/{name}", 0, values.numel()).view_as(values))
        if extra is not None:
            for name, parameter in extra.named_parameters():
                parameter.copy_(read(f"momentum/{name}", 0, parameter.numel()).view_as(parameter))


def loss_scale(engine: deepspeed.DeepSpeedEngine) -> dict[str, float]:
    """Return where fp16's dynamic loss scale stands; empty under other precisions."""
    scaler = getattr(_zero_optimizer(engine), "loss_scaler", None)
    return {name: getattr(scaler, name) for name in _LOSS_SCALE if hasattr(scaler, name)}


def restore_loss_scale(engine: deepspeed.DeepSpeedEngine, scale: dict[str, float]) -> None:
    """Set it; a run that comes from another precision begins with its own."""
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


def _restore_fragment(name: str, mapping, read: Read) -> None:
    start, numel = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    mapping.hp_fragment.copy_(read(f"param/{name}", start, numel))
    for moment in mapping.get_optim_state_keys():
        mapping.get_optim_state_fragment(moment).copy_(read(f"{moment}/{name}", start, numel))


def _share_of_replicas(module: nn.Module) -> set[str]:
    """Return the names of the parameters that this rank writes among those that several ranks hold alike."""
    layer_of = {}
    for layer in module.modules():
        if isinstance(layer, ExpertParallelMoE):
            layer_of |= dict.fromkeys(layer.experts.parameters(), layer)
    share = set()
    for position, (name, parameter) in enumerate(module.named_parameters()):
        # Experts are alike on ranks ep_size apart, everything else on all ranks.
        ep_size = layer_of[parameter].ep_size if parameter in layer_of else 1
        if position % (dist.world_size() // ep_size) == dist.rank() // ep_size:
            share.add(name)
    return share


def _plain_moments(engine: deepspeed.DeepSpeedEngine, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a parameter's moments where the optimizer is torch's own (ZeRO 0)."""
    if _zero_optimizer(engine) is None:
        for name, values in engine.optimizer.state.get(parameter, {}).items():
            if torch.is_tensor(values) and values.shape == parameter.shape:
                yield name, values


def _zero_optimizer(engine: deepspeed.DeepSpeedEngine):
    """Return DeepSpeed's ZeRO-1/2 optimizer, or None where the optimizer is torch's own."""
    return engine.optimizer if engine.zero_optimization_stage() > 0 else None


def _link_optimizer_state(zero) -> None:
    """Tie every parameter's fragment to its optimizer state.

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
