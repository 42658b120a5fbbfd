"""What must not move does not, under any optimizer; what follows the weights does so in float32, under bf16 too."""

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models.ema import follow
from sparse_mlp_ds.train import engine as engines
from tests.helpers import harness, tiny

MOMENTUM = 0.95


def _freeze(zero: int, names: tuple[str, ...]):
    """Two steps with each optimizer; returns the patch projection before and after, and how many others moved."""
    found = []
    for name in names:
        model = tiny.model(2)
        model.patch_embed.requires_grad_(False)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        share = BatchPlan.over(process_group.world_size(), tiny.IMAGES)
        config = DeepSpeedJson({"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0})
        built = engines.build(model, Optimizer(name=name, base_lr=1.0, weight_decay=0.1), share, config)
        built.batch = share
        for number in range(2):
            tiny.step(built, number)
        frozen = [n for n in before if n.startswith("patch_embed")]
        after = dict(model.named_parameters())
        still = {n for n in before if torch.equal(before[n], after[n])}
        found.append((frozen, still, len(before)))
    return found


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_frozen_patch_projection_stays_bit_by_bit(zero):
    names = ("adamw", "sgd", "lamb", "lars")
    for rank in harness.run(2, _freeze, zero, names):
        for name, (frozen, still, total) in zip(names, rank, strict=True):
            assert len(frozen) == 2 and still >= set(frozen), name
            assert len(still) < total / 3, f"{name}: nothing moved at all"


def _replay(zero: int, bf16: bool):
    """An average of a run's weights, and the same in float64 from the masters of every step."""
    built = tiny.build_engine(2, zero, **({"bf16": {"enabled": True}} if bf16 else {}))
    averaged = tiny.model(2).requires_grad_(False)
    exact = {}
    for number in range(40):
        tiny.step(built, number)
        masters = {name: value.clone() for name, value in engines.masters(built)}
        momentum = MOMENTUM if number else 0.0
        follow(averaged, masters, momentum)
        for name, value in masters.items():
            exact[name] = momentum * exact.get(name, 0.0) + (1 - momentum) * value.double()
    types = {p.dtype for p in averaged.parameters()}
    errors = {
        name: float((value.double() - exact[name]).norm() / exact[name].norm().clamp_min(1e-12))
        for name, value in averaged.named_parameters()
    }
    moved = float((exact["head.weight"] - masters["head.weight"].double()).norm())
    return errors, types, moved


@pytest.mark.parametrize(("zero", "bf16"), [(0, False), (1, True), (2, True)])
def test_an_average_is_its_replay_in_float64(zero, bf16):
    for errors, types, moved in harness.run(2, _replay, zero, bf16):
        assert types == {torch.float32}
        assert max(errors.values()) < 1e-5, max(errors, key=errors.get)  # wanted: 1e-3
        assert moved > 0.01, "the weights did not move away from their average"


def _beside_deepspeed(zero: int):
    """Norms and masters as they are taken here and as DeepSpeed takes them, of 3 steps in bf16."""
    built = tiny.build_engine(2, zero, bf16={"enabled": True})
    optimizer, norms = built.optimizer, []
    ours, theirs = optimizer.get_grad_norm_direct, type(optimizer).get_grad_norm_direct

    def both(gradients, parameters):
        norms.append((float(ours(gradients, parameters)), float(theirs(optimizer, gradients, parameters))))
        return ours(gradients, parameters)

    optimizer.get_grad_norm_direct = both
    for number in range(3):
        tiny.step(built, number)
    optimizer.get_grad_norm_direct = ours
    off = []
    for name, value in engines.masters(built):
        parameter = built.module.get_parameter(name)
        full = safe_get_full_fp32_param(parameter)
        low = parameter.dtype == torch.bfloat16 and not torch.equal(value, parameter.float())
        off.append((name, torch.equal(value, full), low))
    return norms, off, built.tput_timer.config.enabled


@pytest.mark.parametrize("zero", [1, 2])
def test_norms_and_masters_are_deepspeeds_bit_by_bit(zero):
    for norms, masters, timed in harness.run(2, _beside_deepspeed, zero):
        assert len(norms) >= 3 * 3 and all(ours == theirs > 0 for ours, theirs in norms)
        assert [name for name, equal, _ in masters if not equal] == []
        assert sum(low for *_, low in masters) > 10, "masters no finer than the weights would show nothing"
        assert not timed, "DeepSpeed's timer makes every step wait for the device"
