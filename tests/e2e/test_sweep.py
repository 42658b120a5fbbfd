"""A real sweep of real runs: killed on the way it repeats nothing that is finished, and two at once share the work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.shards import digits
from tests.helpers.launcher import MOE, REPOSITORY

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

SWEEP = {
    "name": "little",
    "recipe": "digits",
    "ds_config": MOE,
    "seeds": [3, 4],
    "set": {
        "train.max_steps": 2,
        "log.every_steps": 1,
        "log.tensorboard": False,
        "data.workers": 0,
        "stages.pretrain": None,
        "stages.evaluate": None,
        "stages.finetune.kind": "supervised",
        "stages.finetune.batch_size": 16,
    },
    "variants": {"mixer": {"model": {"name": "mixer_digits"}}, "sparse": {}},
    "metrics": ["finetune.top1", "finetune.ece"],
}


@pytest.fixture
def folder(tmp_path):
    digits.make(tmp_path / "data/digits")
    return tmp_path


def _start(folder: Path, *arguments: str, **changes) -> subprocess.Popen:
    (folder / "little.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    log = (folder / "sweep.log").open("ab")
    command = [sys.executable, "-m", "sparse_mlp_ds.cli.main", "sweep", "little.yaml", *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _finished(folder: Path) -> dict[str, float]:
    """Runs that are finished, and when their summary was written last."""
    found = {}
    for path in (folder / "runs/little").glob("*/summary.json"):
        if json.loads(path.read_text())["stages"]:
            found[path.parent.name] = path.stat().st_mtime_ns
    return found


def _wait(what, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)


def test_killed_on_the_way_it_goes_on_and_repeats_nothing(folder):
    first = _start(folder)
    _wait(lambda: "finished in" in (folder / "sweep.log").read_text(), first)  # its process, too, writes no more
    _wait(lambda: len(psutil.Process(first.pid).children()) == 1, first)  # the second run has started
    orphan = psutil.Process(first.pid).children()[0]
    first.kill()
    first.wait()
    assert orphan.is_running(), "a run does not depend on who started it"
    before = _finished(folder)
    second = _start(folder)
    third = _start(folder)  # two sweeps on one folder share what is left
    for process in (second, third):
        assert process.wait(400) == 0, (folder / "sweep.log").read_text()
    after = _finished(folder)
    assert set(after) == {f"{variant}_seed-{seed}" for variant in ("mixer", "sparse") for seed in (3, 4)}
    assert {name: after[name] for name in before} == before, "a finished run was repeated"
    started = [line.split(":")[0] for line in (folder / "sweep.log").read_text().splitlines() if ": started" in line]
    assert len(started) == len(set(started)) == 4, started
    table = json.loads((folder / "runs/little/table.json").read_text())
    assert [row["setting"] for row in table["rows"]] == ["mixer", "sparse"]
    for row in table["rows"]:
        assert row["values"]["finetune.top1"].keys() == {"3", "4"}
    text = (folder / "runs/little/table.md").read_text()
    assert text.splitlines()[0] == "| setting | params | MACs | finetune.top1 | finetune.ece | seeds | time of a run |"
    assert "mixer" in (folder / "runs/little/table.svg").read_text()
    results = [json.loads(line) for line in (folder / "runs/little/results.jsonl").read_text().splitlines()]
    top1 = {f"{one['variant']}_seed-{one['seed']}": one["top1"] for one in results}
    for name in after:
        hits = json.loads((folder / "runs/little" / name / "finetune.hits.json").read_text())
        assert (image_hits.unpacked(hits) == image_hits.RIGHT).mean() == pytest.approx(top1.pop(name))
    assert not top1 and all(one["train_loss"] > 0 and one["steps"] == 2 for one in results)
    (difference,) = [one for one in table["differences"] if one["metric"] == "finetune.top1"]
    low, high = difference["difference"]["over_images"]
    assert low <= sum(difference["difference"]["by_seed"].values()) / 2 <= high
    elsewhere = _start(folder, "--out", "elsewhere", "--results", "runs/little/results.jsonl", jobs="auto")
    assert elsewhere.wait(100) == 0, "a different machine repeats nothing"
    assert text == (folder / "elsewhere/table.md").read_text()
    assert "jobs: auto is 1: " in (folder / "sweep.log").read_text()
    assert (folder / "sweep.log").read_text().count(": started") == 4


def test_one_run_of_an_array_and_one_that_fails(folder):
    bad = {"variants": {"mixer": {"model": {"name": "mixer_digits"}}, "broken": {"data.classes": 3}}, "seeds": [0]}
    process = _start(folder, "--only", "0", "--jobs", "2", **bad)
    _wait(lambda: psutil.Process(process.pid).children(), process)
    (run,) = psutil.Process(process.pid).children()
    time.sleep(1)  # between fork and exec it takes its cores
    assert set(run.cpu_affinity()) == os.sched_getaffinity(0), "nobody else was started beside it"
    assert process.wait(300) == 0 and set(_finished(folder)) == {"mixer_seed-0"}
    process = _start(folder, **bad)
    assert process.wait(300) == 1
    said = (folder / "sweep.log").read_text()
    assert "broken_seed-0: failed with exit code 2: error: " in said and "data.classes" in said
    assert "error: 1 of the runs failed: broken_seed-0" in said
    assert "| broken |" in (folder / "runs/little/table.md").read_text()
    again = _start(folder, **bad | {"set": SWEEP["set"] | {"stages.finetune.epochs": 7}})
    assert again.wait(100) == 2
    assert (
        "stages.finetune.epochs was 25.0 and is now 7.0; give the sweep another name"
        in (folder / "sweep.log").read_text()
    )
