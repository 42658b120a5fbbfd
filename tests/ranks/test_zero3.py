"""ZeRO-3, for models without experts: the steps of ZeRO-2, and checkpoints that every other stage reads and writes."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import engine_state
from tests.helpers import harness, tiny

FAMILIES = ("mixer", "gmlp", "amlp", "resmlp", "vit", "deit", "gmlp_text", "bert", "mixer_text")
ALL_PARTITIONED = {"stage": 3, "stage3_param_persistence_threshold": 0}
"""DeepSpeed leaves small parameters whole, which all of these models' are."""
OFFLOAD = {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
BF16 = {"bf16": {"enabled": True}}

pytestmark = pytest.mark.timeout(600)


def build(zero: int, **options: Any):
    """An engine of a dense tiny model."""
    section = ALL_PARTITIONED if zero == 3 else {"stage": zero}
    return tiny.build_engine(1, zero, **{"family": "mixer", "zero_optimization": section} | options)


def _steps(cases: list[dict[str, Any]], zero: int) -> list[Any]:
    """Three steps of each case: loss and norm of each, the masters behind them, and how many parameters are empty."""
    found = []
    for case in cases:
        built = build(zero, **case)
        figures = [figure for number in range(3) for figure in tiny.step(built, number)]
        empty = sum(parameter.numel() == 0 for parameter in built.module.parameters())
        masters = {name: value.clone() for name, value in engines.masters(built)}
        found.append((figures, masters, empty))
        engines.end(built)
    return found


def _assert_as_under_zero_2(world: int, cases: list[dict[str, Any]], figure: float, **tolerance: float) -> None:
    """figure: relative tolerance of losses and norms; tolerance: of weights."""
    expected = harness.run(world, _steps, cases, 2, seconds=300)[0]
    for rank in harness.run(world, _steps, cases, 3, seconds=300):
        for case, (figures, masters, empty), (own, full, _) in zip(cases, rank, expected, strict=True):
            assert empty == (0 if "zero_optimization" in case else len(masters)), case
            assert figures == pytest.approx(own, rel=figure), case
            assert masters.keys() == full.keys()
            for name, value in masters.items():
                says = lambda m, n=name, c=case: f"{c}, {n}: {m}"  # noqa: E731
                torch.testing.assert_close(value, full[name], **tolerance, msg=says)


def test_every_family_takes_the_steps_of_zero_2():
    cases = [{"family": family, "optimizer": "sgd"} for family in FAMILIES]
    _assert_as_under_zero_2(2, cases, figure=1e-5, rtol=1e-5, atol=1e-6)


def test_every_optimizer_takes_the_steps_of_zero_2():
    """On three ranks, where parameters end in padding and the ranks have different numbers of images."""
    cases: list[dict[str, Any]] = [
        {"optimizer": "adamw"},
        {"optimizer": "lamb"},
        {"optimizer": "lars", "family": "vit"},
        {"optimizer": "lamb", "exempt_vectors": False, "clip": 0.0},
        {"optimizer": "adamw", "zero_optimization": {"stage": 3}},
        {"optimizer": "sgd", "zero_optimization": {"stage": 3, "sub_group_size": 100}},
        {"optimizer": "sgd", "zero_optimization": OFFLOAD},
    ]
    _assert_as_under_zero_2(3, cases, figure=1e-5, rtol=1e-4, atol=1e-5)


def test_low_precision_takes_the_steps_of_zero_2_but_for_rounding():
    _assert_as_under_zero_2(2, [{"optimizer": "lamb", **BF16}], figure=0.01, rtol=0.05, atol=0.01)


def _freeze() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The patch projection's and one more weight's masters, before and after two steps with a frozen projection."""
    model = tiny.model(1, family="mixer")
    model.patch_embed.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    share = BatchPlan.over(process_group.world_size(), tiny.IMAGES)
    config = DeepSpeedJson({"zero_optimization": ALL_PARTITIONED, "gradient_clipping": 1.0})
    built = engines.build(model, Optimizer(name="lamb", base_lr=1.0, weight_decay=0.1), share, config)
    built.batch = share
    for number in range(2):
        tiny.step(built, number)
    written = {piece.name for piece in engine_state.pieces(built, None)}
    assert written >= {"param/patch_embed.proj.weight", "param/patch_embed.proj.bias"}
    return before, {name: value.clone() for name, value in engines.masters(built)}


def test_a_frozen_patch_projection_stays_bit_by_bit():
    for before, after in harness.run(2, _freeze):
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert {name for name in still if name.startswith("patch_embed")} == {
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
        }
        assert len(still) < len(before) / 3, "nothing moved at all"


def _train(zero: int, start: str | None, first: int, last: int, folder: str, options: dict[str, Any]) -> list[float]:
    """Train steps first .. last - 1, from a checkpoint if one is given, and save the result."""
    built = build(zero, **options)
    if start:
        tiny.restore(built, Path(start))
    losses = [tiny.step(built, number)[0] for number in range(first, last)]
    tiny.save(built, Path(folder), last)
    return losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Four steps of one process without ZeRO: losses, and the checkpoint's tensors."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    losses = harness.run(1, _train, 0, None, 0, 4, str(folder), {})[0]
    return losses, tiny.tensors(folder / "step_4")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 3, {}), (2, 2, {})),
        ((2, 2, {}), (2, 3, {})),
        ((3, 3, {}), (1, 0, {})),
        ((1, 1, {}), (3, 3, {"zero_optimization": {"stage": 3}})),
        ((2, 3, {}), (3, 3, {"zero_optimization": OFFLOAD})),
    ],
    ids=str,
)
def test_what_one_stage_wrote_another_continues(uninterrupted, tmp_path, before, after):
    """Ranks, ZeRO stage and options, before and after."""
    losses, start = [], None
    for (world, zero, options), steps in ((before, (0, 2)), (after, (2, 4))):
        losses += harness.run(world, _train, zero, start, *steps, str(tmp_path), options)[0]
        start = str(tmp_path / "step_2")
    assert losses == pytest.approx(uninterrupted[0], rel=1e-5)
    found, expected = tiny.tensors(tmp_path / "step_4"), uninterrupted[1]
    assert found.keys() == expected.keys()
    assert {name.partition("/")[0] for name in found} == {"param", "exp_avg", "exp_avg_sq"}
    for name, value in found.items():
        kind, _, parameter = name.partition("/")
        # Where the gradient is rounding noise (a bias that the next LayerNorm takes out), AdamW moves by its sign.
        real = expected[f"exp_avg_sq/{parameter}"] > 1e-11 if kind == "param" else torch.ones_like(value, dtype=bool)
        torch.testing.assert_close(value[real], expected[name][real], rtol=1e-3, atol=1e-5, msg=f"{name} differs")


def _stop_and_go_on(folder: str, precision: dict[str, Any]) -> None:
    """Two steps, then two more by the same engine, and the same by a new one that reads the checkpoint."""
    built = build(3, **precision)
    for number in range(2):
        tiny.step(built, number)
    tiny.save(built, Path(folder), 2)
    other = build(3, **precision)
    tiny.restore(other, Path(folder, "step_2"))
    tiny.save(other, Path(folder, "read"), 2)
    for engine, name in ((built, "whole"), (other, "parts")):
        for number in range(2, 4):
            tiny.step(engine, number)
        tiny.save(engine, Path(folder, name), 4)


@pytest.mark.parametrize("precision", [{}, BF16], ids=["float32", "bf16"])
def test_a_run_that_continues_has_the_same_bits(tmp_path, precision):
    harness.run(2, _stop_and_go_on, str(tmp_path), precision)
    for one, other in (("step_2", "read/step_2"), ("whole/step_4", "parts/step_4")):
        expected, found = tiny.tensors(tmp_path / one), tiny.tensors(tmp_path / other)
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def _look_in_between() -> list[tuple[float, float]]:
    """Losses of training with an evaluation before each step, and of the same without."""
    images, _ = tiny.batch()
    found = []
    for looks in (True, False):
        built, losses = build(3, family="vit"), []
        for number in range(3):
            if looks:
                with torch.no_grad():
                    logits, _ = built.module(images[: 4 + number])
                assert logits.isfinite().all()
            losses.append(tiny.step(built, number)[0])
        found.append(losses)
        engines.end(built)
    return found


def test_evaluation_between_steps_changes_nothing():
    for with_looks, without in harness.run(2, _look_in_between):
        assert with_looks == without


def _close_one() -> bool:
    """Whether the state of a closed engine is still in memory."""
    built = build(3)
    tiny.step(built, 0)
    piece = weakref.ref(built.optimizer.fp32_partitioned_groups_flat[0])
    assert piece() is not None
    engines.end(built)
    del built
    gc.collect()
    return piece() is not None


def test_a_stage_that_is_over_leaves_nothing_in_memory():
    assert harness.run(2, _close_one) == [False, False]
