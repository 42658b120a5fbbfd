"""A run that goes back before a spike of its loss does the same when it is stopped on the way, and on more ranks."""

import json
from types import SimpleNamespace

import pytest

from sparse_mlp_ds.checkpoints.manifest import read_manifest
from tests.helpers import harness, records, tiny

pytestmark = pytest.mark.timeout(600)

RECIPE = """
name: spiked
data: {{embedded: digits, train: {0}/digits/train, val: {0}/digits/val, classes: 10, workers: 0}}
model: {{name: vmoe_s32_last2, image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2, channel_hidden: 32,
  moe_placement: last1, moe_c: {{experts: 2, top_k: 1, hidden: 16}}}}
train: {{max_steps: 12, loss_spike: {{factor: 1.002, window: 5, go_back: 2}}}}
log: {{every_steps: 3, tensorboard: false}}
checkpoint: {{every_steps: 4, keep: 20}}
stages:
  train:
    kind: supervised
    epochs: 2
    batch_size: 16
    optimizer: {{name: adamw, base_lr: 0.1, weight_decay: 0.01}}
    view: {{flip: 0.0}}
"""
"""With so low a factor and so high a rate, ordinary noise is a spike."""


def _train(folder, out, overrides=()):
    from sparse_mlp_ds.distributed import process_group
    from sparse_mlp_ds.train import job, loop

    recipe, ds = str(folder / "recipe.yaml"), str(folder / "ds.json")
    resolved = job.resolve(recipe, ds, list(overrides), str(out), "auto", process_group.world_size())
    loop.run(resolved, SimpleNamespace(at=lambda *_, **__: None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiked")
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder))
    harness.run(1, _train, folder, folder / "whole", seconds=300)
    return folder


def _progress(out):
    return read_manifest(out / "checkpoints/step_12")["progress"]


def _spikes(out):
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines][-1] == "ended"
    return [line for line in lines if line["event"] == "loss_spike"]


def test_the_data_up_to_the_spike_are_passed_over_and_the_spike_is_told(folder):
    out = folder / "whole"
    spikes, stretches = _spikes(out), _progress(out)["passed_over"]
    assert stretches
    for (taken, batches), told in zip(stretches, spikes, strict=False):
        assert taken % 4 == 0 and told["spikes"][0]["step"] == taken + batches
        assert len(told["samples"]) == 16 and told["message"].count(told["samples"][0]) == 1
    steps = [record["step"] for record in records.of_steps(out)]
    assert steps == sorted(set(steps)), "records of the steps that were taken back are gone"


def test_a_run_that_is_stopped_on_the_way_passes_over_the_same(folder):
    out = folder / "stopped"
    for steps in (6, 9, 12):
        harness.run(1, _train, folder, out, [f"train.max_steps={steps}"], seconds=300)
    assert _progress(out)["passed_over"] == _progress(folder / "whole")["passed_over"]
    found, expected = (tiny.tensors(one / "checkpoints/step_12") for one in (out, folder / "whole"))
    assert all((found[name] == expected[name]).all() for name in expected)


def test_two_ranks_go_back_together(folder):
    out = folder / "two"
    harness.run(2, _train, folder, out, seconds=300)
    assert _progress(out)["passed_over"] == _progress(folder / "whole")["passed_over"]


def test_without_a_budget_a_spike_is_only_told(folder):
    out = folder / "told"
    harness.run(1, _train, folder, out, ["train.loss_spike.go_back=0", "train.max_steps=9"], seconds=300)
    assert not (out / "previous-1").exists()
    first = _spikes(folder / "whole")[0]
    assert _spikes(out)[0]["samples"] == first["samples"] and _spikes(out)[0]["spikes"][0] == first["spikes"][0]
