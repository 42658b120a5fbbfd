"""Pretraining stopped on one topology goes on in any other, as if it had been one process all the time."""

from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest, writer
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train import engine_state
from tests.helpers import harness, moco, tiny

BF16 = {"bf16": {"enabled": True}}

pytestmark = pytest.mark.long


def _train(zero: int, precision: dict, start: str | None, first: int, last: int, folder: str):
    """Steps first .. last - 1; returns the losses, and saves the result."""
    recipe, world = moco.recipe("sparse_mlp"), process_group.world_size()
    method = moco.method(recipe, world)
    if not start:
        method.begin()
    share = BatchPlan.over(world, moco.BATCH)
    config = DeepSpeedJson({"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0} | precision)
    engine = engines.build(method.module, recipe.stages["pretrain"].optimizer, share, config)
    if start:
        found = manifest.open_checkpoint(Path(start))
        engine_state.restore(engine, method.companion, Reader(found), found.progress["stage_step"])
    losses = []
    for step in range(first, last):
        engines.set_learning_rate(engine, 2e-3)
        method.before_step(engine, step)
        places = torch.arange(moco.BATCH).view(world, -1)[process_group.rank()]
        for loss, reports in method.losses(engine, [moco.images(places)]):
            engine.backward(loss + sum(report.balance for report in reports.values()))
            engine.step()
        losses.append(float(comm.all_reduce(loss.detach().clone())) / world)
    about = {"progress": {"stage_step": last}, "recipe": {}}
    writer.save(Path(folder), last, engine_state.pieces(engine, method.companion), about)
    return losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    losses = harness.run(1, _train, 0, {}, None, 0, 6, str(folder))[0]
    return losses, tiny.tensors(folder / "step_6")


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """Three steps on 2 ranks under ZeRO-1."""
    folder = tmp_path_factory.mktemp("three")
    return harness.run(2, _train, 1, {}, None, 0, 3, str(folder))[0], folder / "step_3"


def _unlike(found, expected) -> list[str]:
    """Names of tensors of which more than one element in a thousand differs by more than rounding.

    Single elements may: AdamW's first step divides a gradient by its own size, so that of an element whose gradient is
    about 1e-8, and rounded differently on a different number of ranks, is different. Biases that a norm takes out move
    by rounding alone.
    """
    close = {n: torch.isclose(found[n], expected[n], rtol=2e-3, atol=2e-5) for n in expected if not n.endswith(".bias")}
    return [name for name, same in close.items() if (~same).float().mean() > 1e-3]


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 1), (4, 2)])
def test_any_topology_goes_on(uninterrupted, three_steps, tmp_path, world, zero):
    before, path = three_steps
    after = harness.run(world, _train, zero, {}, str(path), 3, 5, str(tmp_path))[0]
    twice = harness.run(2, _train, 1, {}, str(tmp_path / "step_5"), 5, 6, str(tmp_path))[0]  # resumed again
    assert before + after + twice == pytest.approx(uninterrupted[0], rel=1e-5)
    found = tiny.tensors(tmp_path / "step_6")
    assert found.keys() == uninterrupted[1].keys()
    assert {"momentum", "exp_avg", "exp_avg_sq", "param"} == {name.partition("/")[0] for name in found}
    assert _unlike(found, uninterrupted[1]) == []


def test_reading_and_writing_changes_no_bit_of_it(three_steps, tmp_path):
    harness.run(4, _train, 2, {}, str(three_steps[1]), 3, 3, str(tmp_path))
    expected, found = tiny.tensors(three_steps[1]), tiny.tensors(tmp_path / "step_3")
    assert any(".experts.3." in name for name in found if name.startswith("exp_avg_sq/"))
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == set()


def test_bf16_goes_on_in_float32_and_back(three_steps, tmp_path):
    """A run's float32 masters and moments pass through bf16 engines unharmed."""
    path = three_steps[1]
    harness.run(2, _train, 2, BF16, str(path), 3, 3, str(tmp_path / "bf16"))
    harness.run(2, _train, 0, {}, str(tmp_path / "bf16/step_3"), 3, 3, str(tmp_path / "float32"))
    expected, found = tiny.tensors(path), tiny.tensors(tmp_path / "float32/step_3")
    frozen = {f"param/backbone.patch_embed.proj.{kind}" for kind in ("weight", "bias")}  # have no float32 master
    assert {name for name in expected if not torch.equal(found[name], expected[name])} == frozen
    losses = harness.run(2, _train, 2, BF16, str(path), 3, 6, str(tmp_path / "bf16"))[0]
    after = harness.run(2, _train, 0, {}, str(tmp_path / "bf16/step_6"), 6, 8, str(tmp_path / "float32"))[0]
    assert all(torch.isfinite(torch.tensor(losses + after))) and after[-1] < losses[0]
