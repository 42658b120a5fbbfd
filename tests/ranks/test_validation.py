"""Validation in whole runs: it changes nothing, what it measures is the checkpoint's, and a killed run agrees."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import harness, records, tiny

RECIPE = """
name: validated
data: {{embedded: digits, train: {0}/digits/train, val: {0}/digits/val, classes: 10, workers: 0}}
model: {{name: sparse_mlp_digits, width: 16, token_hidden: 8, channel_hidden: 16, dense_blocks: 1, sparse_width: 16,
  moe_s: {{experts: 4, hidden: 8}}, moe_c: {{experts: 4, hidden: 16}}, drop_path: 0.2, dropout: 0.1}}
train: {{max_steps: 10}}
stages:
  train:
    kind: supervised
    epochs: 0.6
    batch_size: 48
    ema: 0.5
    mix: {{mixup: 0.2}}
    optimizer: {{name: adamw, base_lr: 1.0e-2}}
    view: {{flip: 0.0, erase: 0.2}}
  best: {{kind: evaluate, batch_size: 50}}
  last: {{kind: evaluate, batch_size: 50}}
checkpoint: {{every_steps: 4, keep: 1}}
log: {{every_steps: 5, tensorboard: false}}
"""
VALIDATED = ("stages.train.val_every_epochs=0.1", "stages.train.keep_best=true", "stages.best.weights=best")
"""An epoch has 29 steps, so that steps 3, 6, 9 and the last one, 10, are validated."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validated")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder))
    for zero in (0, 2):
        ds = {"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0}
        (folder / f"ds_{zero}.json").write_text(json.dumps(ds))
    return folder


def train(folder: Path, out: str, zero: int, overrides=(), die_after: int = 0) -> None:
    """Train; with `die_after`, every rank is killed when it has taken so many steps."""
    from sparse_mlp_ds.distributed import process_group
    from sparse_mlp_ds.train import job, loop

    def at(phase, *_, step=0, **__):
        if phase == "data" and die_after and step > die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    ds, world = str(folder / f"ds_{zero}.json"), process_group.world_size()
    resolved = job.resolve(str(folder / "recipe.yaml"), ds, list(overrides), str(folder / out), "auto", world)
    loop.run(resolved, SimpleNamespace(at=at))


@pytest.fixture(scope="module")
def validated(folder):
    harness.run(2, train, folder, "validated", 2, VALIDATED, seconds=240)
    return folder / "validated"


def stages(out: Path) -> dict[str, dict]:
    """The entries of summary.json by stage, without times."""
    entries = json.loads((out / "summary.json").read_text())["stages"]
    return {entry["name"]: {k: v for k, v in entry.items() if k not in ("seconds", "phases")} for entry in entries}


def validations(out: Path) -> dict[int, dict[str, float]]:
    """What metrics.jsonl says of validations, by step."""
    found = {r["step"]: {k[4:]: v for k, v in r.items() if k.startswith("val/")} for r in records.of_steps(out)}
    return {step: figures for step, figures in found.items() if figures}


def unlike(out: Path, expected: Path, step=10) -> list[str]:
    """Names of the tensors of two runs' checkpoints that are not equal bit by bit."""
    found, wanted = (tiny.tensors(run / f"checkpoints/step_{step}") for run in (out, expected))
    assert found.keys() == wanted.keys() and any(name.startswith("momentum/") for name in found)
    return [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_a_run_without_validation_has_the_same_weights_bit_by_bit(folder, validated):
    harness.run(2, train, folder, "plain", 2, seconds=240)
    assert unlike(folder / "plain", validated) == []
    assert validations(folder / "plain") == {} and "best" not in stages(folder / "plain")["train"]


def test_what_is_recorded_is_what_the_kept_checkpoints_reach(validated):
    measured, done = validations(validated), stages(validated)
    assert list(measured) == [3, 6, 9, 10] and all(f.keys() == measured[3].keys() for f in measured.values())
    best = done["train"]["best"]
    # The first of the highest top-1; the last step competes too.
    assert best["step"] == max(measured, key=lambda step: (measured[step]["top1"], -step))
    assert {name: best[name] for name in measured[10]} == measured[best["step"]]
    for stage, step in (("best", best["step"]), ("last", 10)):
        assert done[stage]["images"] == 360
        assert done[stage]["metrics"] == pytest.approx(measured[step], rel=1e-5)
        assert done[stage]["metrics"]["top1"] == measured[step]["top1"]
    assert done["train"]["metrics"] == measured[10]
    kept = sorted(path.name for path in (validated / "checkpoints").glob("step_*"))
    assert kept == sorted({"step_10", best["checkpoint"]})
    assert json.loads((validated / "checkpoints/best.json").read_text()) == best


def test_three_ranks_validate_every_image_once(folder):
    """Over 48 images: 16 for each rank; the last batch of the 360 held-out ones is padded."""
    harness.run(3, train, folder, "three", 0, VALIDATED, seconds=240)
    measured, done = validations(folder / "three"), stages(folder / "three")
    assert done["last"]["metrics"] == pytest.approx(measured[10], rel=1e-5)
    assert all((360 * figures["top1"]) == pytest.approx(round(360 * figures["top1"])) for figures in measured.values())


@pytest.mark.parametrize("after", [5, 7])
def test_a_run_that_is_killed_between_validations_ends_with_the_same_best(folder, validated, after):
    out = folder / f"killed_{after}"
    with pytest.raises(AssertionError, match="died without a word"):
        harness.run(2, train, folder, out.name, 2, VALIDATED, after, seconds=240)
    harness.run(2, train, folder, out.name, 2, VALIDATED, seconds=240)
    assert stages(out) == stages(validated)
    assert validations(out) == validations(validated)
    assert unlike(out, validated) == []


def test_a_stage_without_gain_ends_early_and_stays_ended(folder):
    """Also if it is killed after the first validation without gain, and goes on from there."""
    still = (*VALIDATED, "stages.train.optimizer.base_lr=1e-30", "stages.train.stop_after=2")
    with pytest.raises(AssertionError, match="died without a word"):
        harness.run(2, train, folder, "still", 2, still, 8, seconds=240)
    harness.run(2, train, folder, "still", 2, still, seconds=240)
    entry = stages(folder / "still")["train"]
    assert (entry["steps"], entry["last_step"], entry["ended_by"]) == (9, 9, "stop_after")
    assert entry["best"]["step"] == 3 and list(validations(folder / "still")) == [3, 6, 9]
    harness.run(2, train, folder, "still", 2, (*still, "train.max_steps=12"), seconds=240)
    assert stages(folder / "still")["train"] == entry
