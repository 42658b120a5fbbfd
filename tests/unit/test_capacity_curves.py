"""Accuracy over the capacity of experts: measured on a real model, gone on with, and drawn."""

import json
import sys

import pytest

from benchmarks import capacity
from sparse_mlp_ds import create_model
from sparse_mlp_ds.shards import digits
from tests.helpers.launcher import REPOSITORY


@pytest.fixture
def data(tmp_path):
    digits.make(tmp_path / "digits")
    return tmp_path / "digits/val"


def test_every_capacity_is_measured_once(tmp_path, data, monkeypatch):
    run, found = tmp_path / "sparse_seed-0", tmp_path / "found.jsonl"
    create_model("sparse_mlp_digits", num_classes=10).save_pretrained(run)
    arguments = ["capacity", str(run), "--data", str(data), "--file", str(found), "--plot", str(tmp_path / "plot.svg")]
    for factors in (["0.5"], ["0.5", "2"], ["2"]):
        monkeypatch.setattr(sys, "argv", [*arguments, "--factors", *factors])
        capacity.main()
    known = [json.loads(line) for line in found.read_text().splitlines()]
    factors = [(one["factor"], one["priority"]) for one in known]
    both = [(factor, priority) for factor in (0.5, 2.0) for priority in capacity.PRIORITIES]
    assert factors == [(None, "importance"), *both]
    assert {one["model"] for one in known} == {"sparse_seed-0"} and all(one["images"] == 360 for one in known)
    assert "sparse, by importance" in (tmp_path / "plot.svg").read_text()


def test_the_committed_file_has_three_seeds_and_their_mean():
    lines = (REPOSITORY / "docs/results/capacity_inference.jsonl").read_text().splitlines()
    own = [one for one in map(json.loads, lines) if capacity.setting(one) == "plus" and one["priority"] == "importance"]
    assert {one["model"][-1] for one in own} == {"0", "1", "2"}
    means = capacity.mean_by_factor([one for one in own if one["factor"]])
    assert list(means) == sorted(means) and means[0.5] == pytest.approx(61.13, abs=0.01)


def test_what_evaluate_refuses_ends_it_with_that_line(tmp_path, monkeypatch, capfd):
    arguments = ["capacity", str(tmp_path / "none"), "--data", str(tmp_path), "--file", str(tmp_path / "found.jsonl")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        capacity.main()
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and "none: no such file or folder" in line
    assert not (tmp_path / "found.jsonl").exists()
