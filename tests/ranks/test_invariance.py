"""Parallelism changes nothing but speed: the same global batch gives the same update on every topology."""

import functools

import pytest
import torch

from tests.ranks import harness, tiny

TOPOLOGIES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]


def _one_step(ep_size: int | dict[str, int], zero: int, top_k: int, family: str = "sparse_mlp"):
    built = tiny.build_engine(ep_size, zero, top_k, family, optimizer="sgd")
    figures = tiny.step(built, 0)
    return figures, tiny.gather(dict(built.module.named_parameters()))


@functools.lru_cache
def _reference(top_k: int, family: str = "sparse_mlp"):
    return harness.run(1, _one_step, 1, 0, top_k, family)[0]


def _assert_same(results, reference):
    expected_figures, expected = reference
    for figures, parameters in results:
        assert figures == pytest.approx(expected_figures, rel=1e-5)
        assert parameters.keys() == expected.keys()
        for name, value in parameters.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert len({figures[2] for figures, _ in results}) == 1, "ranks disagree on the gradient norm"
    assert expected_figures[2] > 0.05, "the clipping was not at work"


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize(("world", "ep_size"), TOPOLOGIES)
def test_one_step_is_the_same_update_everywhere(world, ep_size, zero, top_k):
    """With clipping at work, capacity below demand, gate noise, stochastic depth and dropout inside experts."""
    _assert_same(harness.run(world, _one_step, ep_size, zero, top_k), _reference(top_k))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_several_ep_sizes_live_in_one_model(zero):
    _assert_same(harness.run(4, _one_step, {"moe_s": 4, "moe_c": 2}, zero, 2), _reference(2))


@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("family", ["mixer", "gmlp", "amlp", "vit", "vmoe", "widenet"])
def test_one_step_of_every_other_family(family, zero):
    _assert_same(harness.run(2, _one_step, 2, zero, 2, family), _reference(2, family))


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("family", ["vmoe", "widenet"])
def test_one_step_of_the_other_sparse_families_on_four_ranks(family, zero):
    _assert_same(harness.run(4, _one_step, 2, zero, 1, family), _reference(1, family))


def _logits(ep_size: int) -> torch.Tensor:
    made = tiny.model(ep_size)
    images, _ = tiny.batch()
    with torch.no_grad():
        together = made(images)[0]
        for split in (1, 3):
            parts = torch.cat([made(part)[0] for part in images.split(split)])
            torch.testing.assert_close(parts, together, rtol=0, atol=1e-5)
    return together


def test_an_image_gets_the_same_logits_in_any_batch_on_any_number_of_ranks():
    reference = harness.run(1, _logits, 1)[0]
    for world, ep_size in ((2, 2), (4, 4)):
        for logits in harness.run(world, _logits, ep_size):
            torch.testing.assert_close(logits, reference, rtol=0, atol=1e-5)
