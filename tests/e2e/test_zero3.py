"""All stages of a model without experts under ZeRO-3 and the real launcher: what they learn is that of ZeRO-2."""

import json
from pathlib import Path

import pytest

from tests.helpers import records
from tests.helpers.launcher import Launch

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

RECIPE = """
name: stages
data: {embedded: digits, train: data/digits/train, val: data/digits/val, classes: 10, workers: 1}
model: {name: vit_s16, image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2, channel_hidden: 32,
        positions: learned, checkpoint_blocks: true}
train: {max_steps: 4}
log: {every_steps: 1}
stages:
  pretrain:
    kind: pretrain
    epochs: 1
    batch_size: 64
    hidden: 64
    dim: 32
    contrast: micro_batch
    optimizer: {name: lars, base_lr: 1.0}
    views: [{flip: 0.0}, {flip: 0.0}]
  probe:
    kind: probe
    epochs: 1
    batch_size: 64
    rates: [0.5, 1.0]
    optimizer: {name: sgd, base_lr: 0.5, weight_decay: 0.0}
  finetune:
    kind: finetune
    epochs: 1
    batch_size: 64
    layer_decay: 0.75
    ema: 0.9
    mix: {mixup: 0.2, cutmix: 0.5}
    optimizer: {name: lamb, base_lr: 1.0e-2}
    view: {flip: 0.0}
  evaluate: {kind: evaluate}
"""


def run(folder: Path, stage: int) -> tuple[list[dict], list[dict]]:
    """Train under a ZeRO stage with two micro-batches a step; return the records and the stages' metrics."""
    zero = {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {})
    ds = {"zero_optimization": zero, "gradient_clipping": 1.0, "gradient_accumulation_steps": 2}
    (folder / "ds.json").write_text(json.dumps(ds))
    with Launch(folder, "--recipe", "stages.yaml", "--ds_config", "ds.json", "--out", f"zero{stage}") as launch:
        assert launch.wait() == 0, launch.output()
    summary = json.loads((folder / f"zero{stage}/summary.json").read_text())
    assert summary["zero_stage"] == stage
    return records.of_steps(folder / f"zero{stage}"), [entry["metrics"] for entry in summary["stages"]]


def test_all_stages_learn_what_they_learn_under_zero_2(tmp_path):
    (tmp_path / "stages.yaml").write_text(RECIPE)
    steps, metrics = run(tmp_path, 3)
    expected_steps, expected = run(tmp_path, 2)
    assert [record["step"] for record in steps] == list(range(1, 13))
    for record, other in zip(steps, expected_steps, strict=True):
        for figure in ("loss", "grad_norm"):
            assert record[figure] == pytest.approx(other[figure], rel=1e-4), record["step"]
    for figures, others in zip(metrics, expected, strict=True):
        assert figures == pytest.approx(others, abs=0.01)  # of 360 images
