"""Masked language modelling on real ranks: one step is the same update, and perplexity the same figure, everywhere."""

import functools
import math

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.masking import mask
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.language import MaskedModel
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.train import engine
from sparse_mlp_ds.train.evaluate_text import masked_outcome
from sparse_mlp_ds.train.masked_lm import masked_loss
from tests.helpers import harness, text_rows, tiny

SEQUENCES = 16
TOPOLOGIES = [(1, 1), (2, 1), (2, 2), (3, 1), (4, 4)]
"""Ranks and ep_size; three ranks have 4, 4 and 8 of the 16 sequences."""
FAMILIES = ("gmlp_text", "amlp_text", "sparse_gmlp_text", "sparse_blocks", "bert", "mixer_text")
CASES = [("sparse_gmlp_text", 0), ("sparse_gmlp_text", 2), ("sparse_blocks", 1), ("amlp_text", 2), ("bert", 0)]
"""Models and ZeRO stages."""


def _model(family: str, ep_size: int) -> MaskedModel:
    """A tiny model with experts on ep_size ranks, gate noise and capacity below demand."""
    routing = MoE(group_images=4, capacity_factor_s=1.0, capacity_factor_c=0.75)
    make_moe = engine.expert_parallel(routing, {"moe_s": ep_size, "moe_c": ep_size})
    model = MaskedModel(registry.build(text_rows.spec(family), make_moe=make_moe), text_rows.VOCABULARY)
    init_weights(model, seed=1)
    engine.join_expert_groups(model)
    return model


def _step(family: str, zero: int, ep_size: int, masters: bool = False):
    """One clipped step of SGD; returns objective, norm, and all parameters. masters: ask the engine for these."""
    config = DeepSpeedJson({"zero_optimization": {"stage": zero}, "gradient_clipping": 0.05})
    rank, world = process_group.rank(), process_group.world_size()
    batch = BatchPlan.over(world, SEQUENCES, unit=4)
    built = engine.build(_model(family, ep_size), Optimizer(name="sgd", base_lr=1.0), batch, config)
    mine, weight = list(batch.share(rank, world)), batch.weight(rank, world)
    tokens = torch.from_numpy(text_rows.rows(SEQUENCES))[mine]
    keys = rng.sample_keys(7, torch.arange(SEQUENCES), "text")[mine]
    masked = mask(tokens, keys, text_rows.text_format())
    engine.set_learning_rate(built, 1e-2)
    logits, reports = built(masked.inputs, masked.places, keys)
    loss = masked_loss(logits, masked.targets)
    built.backward(weight * (loss + sum(report.balance for report in reports.values())))
    built.step()
    objective = float(comm.all_reduce(weight * loss.detach())) / world
    norm = built.gradient_norms.read()["grad_norm"]
    found = engine.masters(built) if masters else built.module.named_parameters()
    return (objective, norm), tiny.gather(dict(found))


def _steps(ep_size: int, cases: list[tuple[str, int]]):
    return [_step(family, zero, ep_size) for family, zero in cases]


@functools.lru_cache
def _reference(family: str):
    return harness.run(1, _step, family, 0, 1)[0]


@pytest.mark.parametrize(("world", "ep_size"), TOPOLOGIES)
def test_one_step_is_the_same_update_everywhere(world, ep_size):
    for rank in harness.run(world, _steps, ep_size, CASES, seconds=240):
        for (family, zero), (figures, parameters) in zip(CASES, rank, strict=True):
            expected_figures, expected = _reference(family)
            assert figures == pytest.approx(expected_figures, rel=1e-5), (family, zero)
            assert expected_figures[1] > 0.05, "the clipping was not at work"
            assert parameters.keys() == expected.keys()
            for name, value in parameters.items():
                says = lambda m, n=name, f=family: f"{f}, {n}: {m}"  # noqa: E731
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=says)


def _step_of_zero3():
    """The weights after the one step of a model without experts under ZeRO-3, which collects the tied matrix twice."""
    return _step("amlp_text", 3, 1, masters=True)


def test_one_step_under_zero_3_is_the_same_update():
    expected_figures, expected = _reference("amlp_text")
    for figures, parameters in harness.run(2, _step_of_zero3):
        assert figures == pytest.approx(expected_figures, rel=1e-5)
        assert parameters.keys() == expected.keys()
        for name, value in parameters.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def _perplexities(folder, batches: tuple[int, ...]) -> list[tuple[float, float]]:
    """Of two models without experts in float64, so that no rounding depends on the batch."""
    found = []
    for family in ("amlp_text", "bert"):
        model = _model(family, 1).double()
        index, data = index_file.load(folder), Data(train=str(folder), workers=0)
        forward = lambda inputs, places, model=model: model(inputs, places)[0]  # noqa: E731
        for batch in batches:
            metrics = masked_outcome(forward, index, data, batch).metrics()
            found.append((metrics["perplexity"], metrics["masked_top1"]))
    return found


def test_perplexity_is_the_same_on_any_ranks_and_in_any_batches(tmp_path):
    text_rows.write(tmp_path / "val", text_rows.rows(61))
    expected = harness.run(1, _perplexities, tmp_path / "val", (61,))[0]
    assert all(abs(perplexity / text_rows.VOCABULARY - 1) < 0.1 for perplexity, _ in expected)
    for world in (1, 2, 3, 4):
        for rank in harness.run(world, _perplexities, tmp_path / "val", (1, 7, 64)):
            for number, (perplexity, top1) in enumerate(rank):
                of_model = expected[number // 3]
                assert perplexity == pytest.approx(of_model[0], rel=1e-9)
                assert top1 == of_model[1]


def _untrained_losses() -> list[float]:
    keys = rng.sample_keys(0, torch.arange(64), "text")
    masked = mask(torch.from_numpy(text_rows.rows(64)), keys, text_rows.text_format())
    with torch.no_grad():
        logits = [_model(family, 1)(masked.inputs, masked.places, keys)[0] for family in FAMILIES]
    return [float(masked_loss(one, masked.targets)) for one in logits]


def test_an_untrained_model_knows_nothing():
    for family, loss in zip(FAMILIES, harness.run(1, _untrained_losses)[0], strict=True):
        assert loss == pytest.approx(math.log(text_rows.VOCABULARY), abs=0.05), family
