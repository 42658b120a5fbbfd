"""What must not move does not, under any optimizer; what follows the weights does so in float32, under bf16 too."""

import pytest
import torch

from sparse_mlp_ds import dist
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.models.average import follow
from sparse_mlp_ds.stages import Optimizer
from sparse_mlp_ds.train import engine as engines
from tests.ranks import harness, tiny

MOMENTUM = 0.95


def _freeze(zero: int, names: tuple[str, ...]):
    """Two steps with each optimizer; returns the patch projection before and after, and how many others moved."""
    found = []
    for name in names:
        model = tiny.model(2)
        model.patch_embed.requires_grad_(False)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        share = Batch.over(dist.world_size(), tiny.IMAGES)
        config = {"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0}
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
