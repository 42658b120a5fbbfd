"""Parallelism changes nothing but speed: the same global batch gives the same update on every topology."""

import functools
from typing import Any

import pytest
import torch

from tests.helpers import harness, tiny

TOPOLOGIES = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2), (4, 4)]
"""Ranks and ep_size; three ranks have 4, 4 and 8 of the 16 images."""
SPARSE_MLP = [{"zero": zero, "top_k": top_k} for zero in (0, 1, 2) for top_k in (1, 2)]
FAMILIES = ("mixer", "gmlp", "amlp", "resmlp", "vit", "deit", "vmoe", "widenet")
OTHERS = [{"zero": zero, "family": family} for zero in (0, 2) for family in FAMILIES]
TEXT = [{"zero": zero, "family": family} for zero in (0, 2) for family in tiny.TEXT]
TEXT_WITH_EXPERTS = [{"zero": z, "family": f, "top_k": 1} for z in (0, 1, 2) for f in ("gmlp_routed", "gmlp_sparse")]
OTHERS_WITH_EXPERTS = [{"zero": zero, "family": f, "top_k": 1} for zero in (0, 1, 2) for f in ("vmoe", "widenet")]


def _one_step(ep_size: int | dict[str, int], case: dict[str, Any]):
    built = tiny.build_engine(ep_size, optimizer="sgd", **case)
    figures = tiny.step(built, 0)
    return figures, tiny.gather(dict(built.module.named_parameters()))


def _steps(ep_size: int | dict[str, int], cases: list[dict[str, Any]]):
    return [_one_step(ep_size, case) for case in cases]


@functools.lru_cache
def _reference(**case: Any):
    return harness.run(1, _one_step, 1, case | {"zero": 0})[0]


def _assert_same(world: int, ep_size: int | dict[str, int], cases: list[dict[str, Any]]) -> None:
    """One optimizer step of each case gives every rank the reference's update, balance loss and gradient norm.

    With clipping at work, capacity below demand, gate noise, stochastic depth and dropout, inside experts too.
    """
    results = harness.run(world, _steps, ep_size, cases)
    for number, case in enumerate(cases):
        expected_figures, expected = _reference(**{key: value for key, value in case.items() if key != "zero"})
        for figures, parameters in (rank[number] for rank in results):
            assert figures == pytest.approx(expected_figures, rel=1e-5), case
            assert parameters.keys() == expected.keys()
            for name, value in parameters.items():
                says = lambda m, n=name: f"{case}, {n}: {m}"  # noqa: E731, B023
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=says)
        norms = {rank[number][0][2] for rank in results}
        assert len(norms) == 1, f"{case}: ranks disagree on the gradient norm"
        assert expected_figures[2] > 0.05, f"{case}: the clipping was not at work"


@pytest.mark.parametrize(("world", "ep_size"), TOPOLOGIES)
def test_one_step_is_the_same_update_everywhere(world, ep_size):
    _assert_same(world, ep_size, SPARSE_MLP)


def test_experts_with_a_rate_of_their_own():
    """Everywhere; and their weights alone move by that multiple of what they move otherwise."""
    half, quarter = ({"top_k": 2, "expert_lr_scale": scale} for scale in (0.5, 0.25))
    _assert_same(4, 2, [quarter | {"zero": zero} for zero in (0, 1, 2)])
    at_one, at_half, at_quarter = (_reference(**case)[1] for case in ({"top_k": 2}, half, quarter))
    for name, value in at_one.items():
        less, least = value - at_half[name], value - at_quarter[name]
        assert (".experts." in name) == bool(less.any()), name
        torch.testing.assert_close(least, 1.5 * less, rtol=1e-3, atol=1e-7)


def test_several_ep_sizes_live_in_one_model():
    _assert_same(4, {"moe_s": 4, "moe_c": 2}, [{"zero": zero} for zero in (0, 1, 2)])


def test_eight_ranks_with_eight_experts_for_channels_and_four_for_patches():
    cases = [{"zero": zero, "experts_s": 8, "group_images": 2} for zero in (0, 2)]
    _assert_same(8, {"moe_s": 8, "moe_c": 4}, cases)


def test_one_step_of_every_other_family():
    _assert_same(2, 2, OTHERS)


def test_one_step_of_the_other_sparse_families_on_four_ranks():
    _assert_same(4, 2, OTHERS_WITH_EXPERTS)


def test_one_step_of_models_of_text():
    _assert_same(2, 2, TEXT)


def test_one_step_of_sparse_models_of_text_on_four_ranks():
    _assert_same(4, 2, TEXT_WITH_EXPERTS)


def _logits(ep_size: int) -> torch.Tensor:
    made = tiny.model(ep_size)
    images, _ = tiny.batch()
    with torch.no_grad():
        together = made(images)[0]
        for split in (1, 3):
            parts = torch.cat([made(part)[0] for part in images.split(split)])
            torch.testing.assert_close(parts, together, rtol=0, atol=1e-5)
        mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(made(images[mixed])[0], together[mixed], rtol=0, atol=1e-5)
    return together


def test_an_image_gets_the_same_logits_in_any_batch_on_any_number_of_ranks():
    reference = harness.run(1, _logits, 1)[0]
    for world, ep_size in ((2, 2), (4, 4)):
        for logits in harness.run(world, _logits, ep_size):
            torch.testing.assert_close(logits, reference, rtol=0, atol=1e-5)
