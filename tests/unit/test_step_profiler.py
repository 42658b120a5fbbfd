"""The profile of some steps: a trace and a table of exactly those, and nothing that a failure could end."""

import gzip
import json

import pytest
import torch

from sparse_mlp_ds.config.log import Profile
from sparse_mlp_ds.train.step_profiler import StepProfiler


def _train(profiler, steps):
    for step in steps:
        profiler.begin_step(step)
        torch.full((step, 7), 1.0) @ torch.ones(7, 3)  # a product whose shape tells the step
        profiler.end_step(step)


def test_the_steps_that_were_asked_for_are_in_the_trace_and_no_others(tmp_path, capsys):
    profiler = StepProfiler(Profile(at=3, steps=2), tmp_path, "train")
    _train(profiler, range(1, 7))
    name = "train_steps_3-4_rank_00000"
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == [f"{name}.trace.json.gz", f"{name}.txt"]
    with gzip.open(tmp_path / "profile" / f"{name}.trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert [event["args"]["Input Dims"][0] for event in products] == [[3, 7], [4, 7]]
    assert "aten::mm" in (tmp_path / "profile" / f"{name}.txt").read_text()
    assert f"{tmp_path}/profile/{name}.trace.json.gz" in capsys.readouterr().out


@pytest.mark.parametrize("settings, steps", [(None, range(1, 9)), (Profile(at=3), range(4, 9))])
def test_nothing_is_profiled_unasked_or_after_a_restart_behind_it(tmp_path, settings, steps):
    _train(StepProfiler(settings, tmp_path, "train"), steps)
    assert not list(tmp_path.iterdir())


def test_a_stage_that_ends_before_its_profile_leaves_the_profiler_to_the_next(tmp_path):
    first = StepProfiler(Profile(at=2, steps=5), tmp_path, "first")
    _train(first, range(1, 4))
    first.close()
    _train(StepProfiler(Profile(at=1, steps=1), tmp_path, "second"), range(1, 3))
    assert {path.name.partition("_")[0] for path in (tmp_path / "profile").iterdir()} == {"second"}


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path, capsys):
    (tmp_path / "profile").write_text("a file")
    _train(StepProfiler(Profile(at=1, steps=1), tmp_path, "train"), range(1, 3))
    assert "the profile was not written" in capsys.readouterr().out
    (tmp_path / "profile").unlink()
    _train(StepProfiler(Profile(at=1, steps=1), tmp_path, "again"), range(1, 3))
    assert len(list((tmp_path / "profile").iterdir())) == 2
