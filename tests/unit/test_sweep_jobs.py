"""How many runs of a sweep go on at the same time, and how long the rest will take."""

import json
from types import SimpleNamespace

import pytest

from sparse_mlp_ds.distributed import host, threads
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import jobs, time_left
from tests.unit.test_sweep_results import planned


@pytest.mark.parametrize(
    ("cores", "quota", "gpus", "ranks", "runs", "number", "environment"),
    [
        (8, float("inf"), [], 1, 20, 8, {"OMP_NUM_THREADS": "1"}),
        (8, float("inf"), [], 1, 2, 2, {"OMP_NUM_THREADS": "4"}),
        (64, 2.0, [], 1, 20, 2, {"OMP_NUM_THREADS": "1"}),
        (8, float("inf"), [], 3, 20, 2, {"OMP_NUM_THREADS": "1"}),
        (1, float("inf"), [], 2, 20, 1, {"OMP_NUM_THREADS": "1"}),
        (8, float("inf"), ["3", "5", "6"], 1, 20, 3, {"CUDA_VISIBLE_DEVICES": "5"}),
    ],
)
def test_jobs_auto_fills_cores_or_gpus(tmp_path, monkeypatch, cores, quota, gpus, ranks, runs, number, environment):
    monkeypatch.setattr(host, "core_numbers", lambda: set(range(cores)))
    monkeypatch.setattr(threads, "quota", lambda: quota)
    monkeypatch.setattr(jobs, "visible_gpus", lambda: gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep, _ = planned(tmp_path, jobs="auto", ranks=ranks)
    found = jobs.choose(sweep, runs)
    assert found.number == number and f"jobs: auto is {number}: " in found.reason
    assert found.environment(1) == environment
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert gpus or found.environment(0) == {}, "what the user has set stays"
    with pytest.raises(UserError, match="jobs 4 x ranks 1 exceed the 1 GPUs; lower jobs, or give auto"):
        monkeypatch.setattr(jobs, "visible_gpus", lambda: ["0"])
        jobs.Jobs(4, 1).environment(3)


def test_the_time_left_is_that_of_places_that_never_wait(tmp_path, monkeypatch):
    assert time_left.until_done([5.0], [10.0, 10.0, 10.0], jobs=2) == 20  # 0-10-20 beside 5-15
    assert time_left.until_done([], [], jobs=3) == 0
    sweep, runs = planned(tmp_path)
    now = [1000.0]
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: now[0]))
    left = time_left.TimeLeft(tmp_path, 1, {})
    assert left.estimate([], runs) is None
    left.begin(runs[0])
    (tmp_path / runs[0].name).mkdir()
    record = {"stage": "finetune", "epoch": 1.0, "loss": 1.0, "eta_seconds": 30.0}
    (tmp_path / runs[0].name / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    now[0] += 10
    assert left.estimate(runs[:1], runs[1:2]) == pytest.approx(30 + 40)
    now[0] += 10
    left.end(runs[0])
    assert left.estimate([], runs[1:4]) == 3 * 20
