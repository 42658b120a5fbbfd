"""Whole runs on text: masked modelling, its evaluation, classes, answers; stopped runs go on bit by bit."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.config import Data, Source
from sparse_mlp_ds.hub import any_model
from sparse_mlp_ds.hub.load import load_model
from sparse_mlp_ds.sweep import curves, gather, plan
from sparse_mlp_ds.sweep.gather import Gathered
from sparse_mlp_ds.train.evaluate import outcomes
from sparse_mlp_ds.train.evaluate_text import masked_outcome
from tests.helpers import harness, records, text_rows, tiny

MODEL = """{name: sparse_gmlp_text_speeches, length: 16, vocabulary: 40, width: 16, depth: 2, hidden: 24,
  moe_placement: tail1, moe_c: {experts: 4, hidden: 8, top_k: 1}, dropout: 0.1, drop_path: 0.2}"""
RECIPE = """
name: language
data: {{train: {0}/train, val: {0}/val, classes: 2, workers: 0}}
model: {1}
moe: {{group_images: 4}}
stages:
  mlm:
    kind: mlm
    steps: 60
    batch_size: 24
    val_every_steps: 20
    keep_best: true
    optimizer: {{name: adamw, base_lr: 0.3, warmup_steps: 5, decay: linear}}
  perplexity: {{kind: evaluate, batch_size: 10}}
  classes:
    kind: finetune_text
    steps: 8
    batch_size: 16
    ema: 0.5
    layer_decay: 0.9
    optimizer: {{name: adamw, base_lr: 0.1}}
  accuracy: {{kind: evaluate, batch_size: 10}}
checkpoint: {{every_steps: 10, keep: 2}}
log: {{every_steps: 10, tensorboard: false, report: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder, MODEL))
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    text_rows.write(folder / "train", text_rows.rows(200))
    text_rows.write(folder / "val", text_rows.rows(50, seed=1))
    return folder


def train(recipe: Path, out: Path, die_after: int = 0) -> None:
    """Run a recipe; with `die_after`, every rank is killed when the run has taken so many steps."""
    from sparse_mlp_ds.distributed import process_group
    from sparse_mlp_ds.train import job, loop

    def at(phase, *_, step=0, **__):
        if phase == "data" and die_after and step > die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    ds = str(recipe.with_name("ds.json"))
    resolved = job.resolve(str(recipe), ds, [], str(out), "auto", process_group.world_size())
    loop.run(resolved, SimpleNamespace(at=at))


def stages(out: Path) -> dict[str, dict]:
    """The entries of summary.json by stage."""
    return {entry["name"]: entry for entry in json.loads((out / "summary.json").read_text())["stages"]}


@pytest.fixture(scope="module")
def finished(folder):
    harness.run(2, train, folder / "recipe.yaml", folder / "whole", seconds=240)
    return folder / "whole"


def test_stages_measure_themselves_and_what_they_pass_on_agrees(finished):
    found = stages(finished)
    masked, again = found["mlm"]["metrics"], found["perplexity"]["metrics"]
    assert masked["perplexity"] < 0.9 * text_rows.VOCABULARY
    assert again["perplexity"] == pytest.approx(masked["perplexity"], rel=1e-5)
    assert again["masked_top1"] == masked["masked_top1"]
    assert found["mlm"]["sequences"] == 60 * 24 and found["perplexity"]["sequences"] == 50
    report = json.loads((finished / "perplexity.json").read_text())
    assert report["masked_tokens"] == 50 * 2 and report["perplexity"] == again["perplexity"]
    assert found["accuracy"]["metrics"]["top1"] == found["classes"]["metrics"]["top1"]
    assert sum(map(sum, json.loads((finished / "accuracy.json").read_text())["confusion"])) == 50
    assert (finished / "report.html").exists()


def test_a_sweep_takes_its_results_and_learning_curve(folder, finished):
    about = {"name": "language", "recipe": str(folder / "recipe.yaml"), "metrics": ["mlm.perplexity", "accuracy.top1"]}
    (folder / "sweep.yaml").write_text(json.dumps(about | {"variants": {"sparse": {}}}))
    sweep = plan.load(str(folder / "sweep.yaml"))
    (run,) = plan.runs(sweep)
    shutil.copytree(finished, folder / "sweep" / run.name)
    Gathered(sweep, [run], folder / "sweep").update([run])
    page, found = gather.page_of_file(folder / "sweep/results.jsonl", sweep, [run]), stages(finished)
    lines = page.records.of(("sparse", 0))
    assert {name: line.images for name, line in lines.items()} == {n: one["sequences"] for n, one in found.items()}
    curve = page.records.stage(("sparse", 0), "mlm").curve
    assert [(point.step, point.images, point.top1) for point in curve] == [(n, n * 24, None) for n in (20, 40, 60)]
    steps, minutes = curves.figure(page).axes[:2]
    perplexities = [point.perplexity for point in curve]
    assert steps.get_lines()[0].get_ydata().tolist() == pytest.approx(perplexities)
    assert minutes.get_lines()[0].get_xdata()[-1] == pytest.approx(found["mlm"]["seconds"] / 60)


def test_validations_are_in_the_records_and_the_best_one_is_kept(finished):
    validated = {r["step"]: r["val/perplexity"] for r in records.of_steps(finished) if "val/perplexity" in r}
    assert sorted(validated) == [20, 40, 60]
    best = stages(finished)["mlm"]["best"]
    assert best["perplexity"] == min(validated.values()) and best["checkpoint"] == f"step_{best['step']}"
    assert (finished / "checkpoints" / best["checkpoint"]).exists()
    speeds = [r["sequences_per_second"] for r in records.of_steps(finished)]
    assert all(speed > 0 for speed in speeds)


def test_the_models_of_a_run_measure_what_its_stages_did(folder, finished):
    text, index = text_rows.text_format(), index_file.load(folder / "val")
    masked = any_model.from_loaded(load_model(finished, stage="mlm"))
    assert masked.config.task == "masked" and masked.text.special == text.special
    data = Data(train=(Source(path="unused"),), workers=0)
    outcome = masked_outcome(masked.restored, index, data, batch_size=7).metrics()
    assert outcome["perplexity"] == pytest.approx(stages(finished)["mlm"]["metrics"]["perplexity"], rel=1e-5)
    classes = any_model.from_pretrained(finished)
    assert classes.config.task == "classes" and classes.classes == tuple(text_rows.CLASSES)
    of_classes = data.model_copy(update={"classes": 2})
    (found,) = outcomes(classes, index, of_classes, None, batch_size=7)
    assert found.metrics()["top1"] == stages(finished)["accuracy"]["metrics"]["top1"]


@pytest.mark.parametrize("die_after", [34, 64])
def test_a_killed_run_goes_on_bit_by_bit(folder, finished, die_after):
    out = folder / f"killed_{die_after}"
    with pytest.raises(AssertionError, match="died"):
        harness.run(2, train, folder / "recipe.yaml", out, die_after)
    harness.run(2, train, folder / "recipe.yaml", out, seconds=240)
    step = max(int(path.name[5:]) for path in (finished / "checkpoints").glob("step_*"))
    found, wanted = (tiny.tensors(run / f"checkpoints/step_{step}") for run in (out, finished))
    assert found.keys() == wanted.keys() and any(name.startswith("momentum/") for name in found)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    for name, entry in stages(finished).items():
        assert stages(out)[name]["metrics"] == entry["metrics"]


SPANS = """
name: answers
data: {{train: {0}/train, val: {0}/val, workers: 0}}
model: {1}
moe: {{group_images: 4}}
stages:
  answers:
    kind: finetune_span
    from_scratch: true
    steps: 60
    batch_size: 16
    max_answer: 3
    optimizer: {{name: adamw, base_lr: 0.15, warmup_steps: 5}}
  evaluate: {{kind: evaluate, batch_size: 10}}
log: {{every_steps: 10, tensorboard: false, report: false}}
"""
PLAIN = MODEL.replace("dropout: 0.1, drop_path: 0.2", "dropout: 0.0")


def test_answers_to_questions_are_learnt_and_scored(tmp_path):
    for split, count in (("train", 400), ("val", 41)):
        text_rows.write_questions(tmp_path / split, count)
    (tmp_path / "recipe.yaml").write_text(SPANS.format(tmp_path, PLAIN))
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    harness.run(2, train, tmp_path / "recipe.yaml", tmp_path / "run", seconds=240)
    found = stages(tmp_path / "run")
    trained, measured = found["answers"]["metrics"], found["evaluate"]["metrics"]
    assert measured["f1"] == trained["f1"] and measured["exact_match"] == trained["exact_match"]
    report = json.loads((tmp_path / "run/evaluate.json").read_text())
    assert len(report["predictions"]) == report["questions"] == found["evaluate"]["sequences"] == 41
    assert trained["loss"] < np.log(16)  # better than not knowing where
