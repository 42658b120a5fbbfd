"""A finished run, as metrics.jsonl, TensorBoard and wandb show it: the same steps, results and recipe."""

import json
import math
import os
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
import yaml

from sparse_mlp_ds.log import image_hits
from tests.helpers import records
from tests.helpers.launcher import MOE, REPOSITORY
from tests.helpers.wandb_server import Server
from tests.helpers.web import WebServer

pytestmark = pytest.mark.timeout(600)

RECIPE = """
name: shown
data: {embedded: digits, train: data/digits/train, val: data/digits/val, classes: 10, workers: 0}
model: {name: sparse_mlp_digits, width: 16, token_hidden: 8, channel_hidden: 16, dense_blocks: 1, sparse_width: 16,
  moe_s: {experts: 4, hidden: 8}, moe_c: {experts: 4, hidden: 16}}
train: {max_steps: 6}
stages:
  probe:
    kind: probe
    epochs: 1
    batch_size: 48
    rates: [0.5, 1.0]
    optimizer: {name: sgd, base_lr: 0.5, weight_decay: 0.0}
  train:
    kind: supervised
    epochs: 1
    batch_size: 48
    val_every_epochs: 0.1
    optimizer: {name: adamw, base_lr: 1.0e-2}
    view: {flip: 0.0}
  evaluate: {kind: evaluate}
log:
  every_steps: 2
  wandb: {mode: online, project: p, name: a name, group: a group, tags: [one, two]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("shown")
    recipe = yaml.safe_load(RECIPE)
    (folder / "shown.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    server = WebServer(("127.0.0.1", 0), Server)
    thread = Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    own = {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder), "WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | own
    command = [
        sys.executable,
        "-m",
        "sparse_mlp_ds.train",
        "--recipe",
        "shown.yaml",
        "--ds_config",
        MOE,
        "--out",
        "run",
    ]
    try:
        for _ in range(2):  # the second start finds all training stages finished, and evaluates again
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return folder / "run"


def expected(run):
    """What the run's summary says of each stage: STAGE/result/NAME -> value."""
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["probe", "train", "evaluate"]
    return {f"{s['name']}/result/{name}": value for s in stages for name, value in s["metrics"].items()}


def test_metrics_jsonl_has_one_result_of_each_stage(run):
    results = records.of_results(run)
    assert [(one["stage"], one["step"]) for one in results] == [("probe", 6), ("train", 12), ("evaluate", 12)]
    found = {f"{one['stage']}/{name}": value for one in results for name, value in one.items()}
    wanted = expected(run)
    assert {name: found[name] for name in wanted} == wanted
    assert found["train/result/images"] == 6 * 48 and found["train/result/best_top1"] >= found["train/result/top1"]
    steps = records.of_steps(run)
    assert steps[0]["stage"] == "probe" and steps[0]["loss"] == pytest.approx(math.log(10)), "the mean of two heads"
    assert [one["step"] for one in steps if "val/top1" in one] == [9, 12]
    assert steps[-1]["val/loss"] == found["train/result/loss"]


def test_tensorboard_shows_them_and_the_recipe(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    shown.Reload()
    tags = shown.Tags()["scalars"]
    assert {tag.rpartition("/")[2] for tag in tags}.isdisjoint({"epoch", "eta_seconds", "time", "step"})
    for name, value in expected(run).items():
        assert shown.Scalars(name)[-1].value == pytest.approx(value), name
    assert [(e.step, round(e.value, 6)) for e in shown.Scalars("train/val/top1")] == [
        (one["step"], round(one["val/top1"], 6)) for one in records.of_steps(run) if "val/top1" in one
    ]
    (text,) = shown.Tensors("recipe/text_summary")[-1].tensor_proto.string_val
    assert yaml.safe_load(text.decode().strip("`\n")) == yaml.safe_load((run / "config.yaml").read_text())
    contents = shown.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["stages.train.optimizer.base_lr"].number_value == 0.01
    assert start.hparams["model.name"].string_value == "sparse_mlp_digits"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert {metric.name.tag for metric in experiment.metric_infos} <= set(tags)
    assert "_hparams_/session_end_info" in contents


def test_the_figures_by_class_and_the_time_of_each_part_are_recorded(run):
    hits = {}
    for stage in ("probe", "train", "evaluate"):
        outcome = json.loads((run / f"{stage}.json").read_text())
        confusion = np.array(outcome["confusion"])
        assert confusion.sum() == 360 and np.array(outcome["calibration"])[:, 0].sum() == 360
        assert outcome["images_by_class"] == confusion.sum(axis=1).tolist()
        assert outcome["top1"] == pytest.approx(confusion.diagonal().sum() / 360)
        assert outcome["top1"] == pytest.approx(expected(run)[f"{stage}/result/top1"])
        hits[stage] = image_hits.unpacked(json.loads((run / f"{stage}.hits.json").read_text())) == image_hits.RIGHT
        assert hits[stage].mean() == pytest.approx(outcome["top1"])
    assert (hits["evaluate"] == hits["train"]).all(), "the same weights, image by image"
    (probe, train, _) = json.loads((run / "summary.json").read_text())["stages"]
    for entry in (probe, train):
        assert {"data", "forward", "backward", "update", "record", "evaluate"} <= entry["phases"].keys()
        assert all(seconds >= 0 for seconds in entry["phases"].values())
    steps = sum(seconds for phase, seconds in train["phases"].items() if phase != "evaluate")
    assert 0.5 * train["seconds"] < steps + train["phases"]["evaluate"] < train["seconds"] + 30


def test_the_report_is_there_at_the_end(run):
    text = (run / "report.html").read_text()
    for shown in ("finished", "Stage train", "Held-out accuracy", "Confusion matrix", "Worst classes", "backward"):
        assert shown in text, shown
    assert "image/jpeg" in text, "held-out images of the worst classes"
    assert "cannot be shown" not in text
    assert "report: " in (run / "train.log").read_text()


def test_wandb_has_them_under_their_stage(run):
    run_id = (run / "wandb_id").read_text()
    about, rows, summary = Server.begun[run_id], Server.rows[run_id], Server.summary[run_id]
    assert (about["displayName"], about["groupName"], about["tags"]) == ("a name", "a group", ["one", "two"])
    assert json.loads(about["config"])["stages"]["value"]["train"]["batch_size"] == 48
    assert [row["_step"] for row in rows] == [record["step"] for record in records.of_steps(run)]
    last = records.of_steps(run)[-1]
    assert rows[-1]["train/loss"] == pytest.approx(last["loss"]) and rows[-1]["train/val/top1"] == last["val/top1"]
    assert not {name for row in rows for name in row} & {"loss", "time", "train/time", "train/eta_seconds"}
    wanted = expected(run)
    assert {name: summary[name] for name in wanted} == pytest.approx(wanted)
