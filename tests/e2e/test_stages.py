"""Every kind of stage in one run, under the real launcher: what each hands to the next, and what it writes."""

import json

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.routes import record
from tests.helpers.launcher import MOE, Launch
from tests.helpers.made_checkpoints import call

pytestmark = pytest.mark.timeout(600)

RECIPE = """
name: stages
data: {embedded: digits, train: data/digits/train, val: data/digits/val, classes: 10, workers: 1}
model: {name: sparse_mlp_digits}
train: {max_steps: 6}
log: {routes: true, routes_images: 50, every_steps: 2}
stages:
  pretrain:
    kind: pretrain
    epochs: 1
    batch_size: 64
    hidden: 64
    dim: 32
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
    view: {flip: 0.0, rand_augment: {magnitude: 3}, erase: 0.2}
  evaluate: {kind: evaluate}
  half: {kind: evaluate, capacity_factor: 0.25}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    (folder / "stages.yaml").write_text(RECIPE)
    with Launch(folder, "--recipe", "stages.yaml", "--ds_config", MOE) as launch:
        assert launch.wait() == 0, launch.output()
    return folder / "runs/stages"


def tensors(run, step, kind):
    """One kind of a checkpoint's tensors, by the parameter's name."""
    read = Reader(manifest.open_checkpoint(run / f"checkpoints/step_{step}"))
    names = [name for name in read.shapes if name.startswith(f"{kind}/")]
    return {n.removeprefix(f"{kind}/"): read(n, 0, torch.Size(read.shapes[n]).numel()) for n in names}


def test_the_probe_leaves_the_backbone_as_it_came(run):
    before, after = tensors(run, 6, "param"), tensors(run, 12, "momentum")
    assert {n for n in before if n.startswith("backbone.")} == after.keys()
    assert [name for name in after if not torch.equal(after[name], before[name])] == []
    heads = tensors(run, 12, "param")
    assert set(heads) == {f"heads.{n}.{leaf}" for n in range(2) for leaf in ("weight", "bias")}
    assert not torch.equal(heads["heads.0.weight"], heads["heads.1.weight"])


def test_the_probes_best_head_is_exported_with_what_it_reached(run, tmp_path, capsys):
    (probe,) = [one for one in json.loads((run / "summary.json").read_text())["stages"] if one["name"] == "probe"]
    assert call(capsys, "export", run, tmp_path / "out", "--stage", "probe")[0] == 0
    data = run.parents[1] / "data/digits"
    code, said, _ = call(capsys, "evaluate", tmp_path / "out", data, "--workers=0", "--json")
    assert code == 0 and json.loads(said)["top1"] == pytest.approx(probe["metrics"]["top1"], abs=1 / 360)


def test_the_average_is_what_is_tested_and_handed_over(run):
    stages = {stage["name"]: stage["metrics"] for stage in json.loads((run / "summary.json").read_text())["stages"]}
    assert stages["evaluate"] == pytest.approx(stages["finetune"])
    weights, average = tensors(run, 18, "param"), tensors(run, 18, "momentum")
    assert weights.keys() == average.keys()
    moved = [name for name in weights if not torch.equal(weights[name], average[name])]
    assert "backbone.head.weight" in moved and any(".experts." in name for name in moved)
    assert {"top1", "top5", "ece", "knn_top1", "top1_lr_0.25", "top1_lr_0.5"} <= stages["probe"].keys()


def test_an_evaluation_writes_the_figures_of_every_class(run):
    record = json.loads((run / "evaluate.json").read_text())
    confusion = torch.tensor(record["confusion"])
    assert confusion.sum() == 360 == record["images"]
    assert confusion.diagonal().sum() / 360 == pytest.approx(record["top1"])
    by_class = torch.tensor(record["top1_by_class"])
    torch.testing.assert_close(by_class, confusion.diagonal() / confusion.sum(dim=1))
    assert json.loads((run / "half.json").read_text())["confusion"] != record["confusion"], (
        "capacity 0.25 drops nothing"
    )


def _nearly(found, expected):
    """Whether two records are equal but for the last digit of rounded figures, which has been seen to differ."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_nearly(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_nearly, found, expected))
    return found == pytest.approx(expected, rel=1e-3) if isinstance(expected, float) else found == expected


def test_what_the_experts_do_at_the_end_of_each_training_stage(run):
    """On two ranks; the probe's is that of the backbone that it got."""
    assert {path.name for path in (run / "routes").iterdir()} == {"pretrain", "probe", "finetune"}
    found = {name: record.read(run / f"routes/{name}/routes.json") for name in ("pretrain", "probe", "finetune")}
    for name, one in found.items():
        assert 45 <= one.images <= 50, "at most log.routes_images of the 360"
        assert [layer.name for layer in one.layers] == ["3.moe_s", "3.moe_c"]
        pictures = {path.name for path in (run / "routes" / name).glob("*.svg")}
        assert {"classes-3.moe_c.svg", "agreement.svg", "load-pretrain-3.moe_s.svg"} <= pictures
    pretrain, probe, finetune = (
        json.loads((run / f"routes/{name}/routes.json").read_text())["layers"] for name in found
    )
    assert _nearly(probe, pretrain) and not _nearly(finetune, pretrain)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    key = "moe/3.moe_s/items"
    counts = [one[key] for one in records if one["stage"] == "finetune" and key in one]  # the stage's result has none
    (load,) = [one for one in found["finetune"].load if (one.stage, one.layer) == ("finetune", "3.moe_s")]
    assert [list(one) for one in load.items] == counts and sum(counts[0]) == 64 * 48
