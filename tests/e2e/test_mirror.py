"""A run whose machine is lost in mid-upload goes on from its mirror, as if it had never stopped."""

import json
import shutil

import pytest

from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from tests.helpers import records, tiny
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY, Launch

pytestmark = pytest.mark.timeout(900)

ZERO_1 = str(REPOSITORY / "ds_configs/moe_zero1.json")
SHORT = ("--ds_config", ZERO_1, "--recipe", str(old.FOLDER / "recipe.yaml"), "--set", "stages.train.epochs=1.43")
CHECKPOINTS = ("--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep=2")


def complete(store):
    """Steps of the complete checkpoints in the store."""
    paths = [name.split("/") for name in store.names()]
    return {int(path[1][5:]) for path in paths if path[0] == "checkpoints" and path[-1] == "manifest.json"}


def taken(run):
    """Number of the newest step in a run's records."""
    try:
        return max((record["step"] for record in records.of_steps(run)), default=0)
    except FileNotFoundError:
        return 0


@pytest.mark.long
def test_a_machine_that_is_lost_in_mid_upload(store, tmp_path):
    run, expected = tmp_path / "run", tmp_path / "expected"
    with Launch(tmp_path, *SHORT, *CHECKPOINTS, "--out", str(expected)) as launch:
        assert launch.wait() == 0, launch.output()

    mirrored = (*SHORT, *CHECKPOINTS, "--set", f"checkpoint.mirror={store.url}", "--out", str(run))
    with Launch(tmp_path, *mirrored) as launch:
        launch.wait_until(lambda: complete(store))
        store.hold("PUT */checkpoints/*")
        launch.wait_until(store.arrived.is_set)
        launch.wait_until(lambda: taken(run) > max(complete(store)) + 2)  # the upload is stuck, training is not
        launch.kill()
    start = max(complete(store))
    assert start < 20, "the run was over before an upload could be cut short"
    store.held = ""
    store.release.set()
    shutil.rmtree(run)

    with Launch(tmp_path, *mirrored) as launch:
        assert launch.wait() == 0, launch.output()
    text = launch.output()
    assert f"step_{start} and the files of the run beside it were fetched from {store.url}" in text
    assert "resuming from" in text and " WARNING: " not in text

    names = [path.name for path in (expected / "checkpoints").glob("step_*")]
    assert sorted(path.name for path in (run / "checkpoints").glob("step_*")) == sorted(names) and "step_20" in names
    for name in names:
        ours, theirs = (tiny.tensors(folder / "checkpoints" / name) for folder in (run, expected))
        assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    changing = ("time", "images_per_second", "eta_seconds", "data_wait", "seconds")
    ours, theirs = (
        [{key: value for key, value in record.items() if key not in changing} for record in records.of_steps(folder)]
        for folder in (run, expected)
    )
    assert ours == theirs and [record["step"] for record in ours] == list(range(1, 21))

    there = {name.split("/")[1] for name in store.names() if name.startswith("checkpoints/")}
    assert there == set(names)  # what was left of the upload is gone
    for name in names:
        content = store.content(f"checkpoints/{name}/manifest.json")
        assert json.loads(content) == open_checkpoint(run / "checkpoints" / name).manifest
    assert store.content("summary.json") == (run / "summary.json").read_bytes()
    assert {"metrics.jsonl", "environment.json", "report.html", "config.yaml"} <= set(store.names())
    assert len(json.loads(store.content("environment.json"))) == 2  # both starts


def test_a_mirror_that_cannot_be_reached_is_one_line_before_anything_begins(store, tmp_path):
    wrong = ("--set", "checkpoint.mirror=s3://no-such-bucket/run", "--out", str(tmp_path / "run"))
    with Launch(tmp_path, *SHORT, *wrong) as launch:
        assert launch.wait() == 2
    (line,) = [line for line in launch.output().splitlines() if "error: " in line]
    assert line.endswith(
        "checkpoint.mirror s3://no-such-bucket/run: The specified bucket does not exist; correct the URL or its "
        "credentials, or set it to null to train without a mirror"
    )
    assert not (tmp_path / "run").exists()
