"""Sweeps as data: the runs they have, their names, their table, and every mistake in one line."""

import json

import pytest
import yaml

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import plan, table
from sparse_mlp_ds.sweep.execute import is_finished

SWEEP = {
    "name": "tried",
    "recipe": "digits",
    "seeds": [0, 1],
    "variants": {"sparse": {}, "mixer": {"model": {"name": "mixer_digits"}}},
    "grid": {"moe.noise": [0, 1.5], "stages.finetune.optimizer.base_lr": [1e-3]},
    "metrics": ["finetune.top1", "evaluate.ece"],
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tried.yaml"


def load(path, **changes):
    path.write_text(
        yaml.safe_dump({key: value for key, value in (SWEEP | changes).items() if value is not None}, sort_keys=False)
    )
    return plan.load(str(path))


def test_runs_are_variants_times_grid_times_seeds(path):
    runs = plan.runs(load(path))
    names = [run.name for run in runs]
    assert len(set(names)) == 8
    assert names[:2] == ["sparse_noise-0_base_lr-0.001_seed-0", "sparse_noise-1.5_base_lr-0.001_seed-0"]
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4, "a stop after one seed leaves a whole table"
    last = runs[-1].recipe
    assert (last.train.seed, last.moe.noise, last.model["name"]) == (1, 1.5, "mixer_digits")
    assert last.stages["finetune"].optimizer.base_lr == 1e-3


def test_without_a_grid_settings_are_the_variants(path):
    assert [run.setting for run in plan.runs(load(path, grid=None))] == ["sparse", "mixer"] * 2


def test_without_variants_settings_are_the_grid(path):
    runs = plan.runs(load(path, variants=None, grid={"moe.noise": [0, 2]}))
    assert [run.setting for run in runs] == ["noise-0", "noise-2"] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1]}, "tried.yaml: seed: unknown key; did you mean 'seeds'?"),
        ({"seeds": [1, 1]}, "tried.yaml: seeds: a seed is given twice"),
        (
            {"recipe": "digit"},
            "tried, sparse_noise-0_base_lr-0.001: --recipe digit: no such recipe; did you mean 'digits'?",
        ),
        (
            {"grid": {"moe.nois": [1]}},
            "tried, sparse_nois-1: --set moe.nois: unknown key in moe; did you mean 'noise'?",
        ),
        ({"metrics": ["finetun.top1"]}, "tried: metrics: no stage 'finetun'; did you mean 'finetune'?"),
        ({"grid": {"moe.noise": []}}, "tried.yaml: grid.moe.noise: List should have at least 1 item"),
        ({"grid": {"a.b": [1], "c.b": [1]}}, "tried.yaml: grid: two keys end alike"),
        ({"jobs": 0}, "tried.yaml: jobs: Input should be greater than 0"),
        ({"variants": {"a/b": {}}}, "tried.yaml: variants.a/b.[key]: String should match pattern"),
    ],
)
def test_mistakes_are_named_before_anything_runs(path, changes, said):
    with pytest.raises(UserError) as error:
        plan.runs(load(path, **changes))
    assert said in str(error.value)


def test_no_such_sweep(tmp_path):
    with pytest.raises(UserError, match="no such sweep; did you mean 'cifar10_blocks'"):
        plan.load("cifar10_block")
    with pytest.raises(UserError, match="No such file or directory; give a sweep's path"):
        plan.load(str(tmp_path / "x.yaml"))


def finish(folder, run, top1, seconds=60.0):
    """Leave what a finished run leaves."""
    target = folder / run.name
    target.mkdir(parents=True)
    (target / "config.yaml").write_text(yaml.safe_dump(run.recipe.model_dump(mode="json")))
    stages = [{"name": n, "seconds": seconds, "metrics": {"top1": top1, "ece": 0.05}} for n in run.recipe.stages]
    (target / "summary.json").write_text(json.dumps({"stages": stages}))


def test_the_table_has_means_and_ranges_of_what_is_finished(path, tmp_path):
    sweep = load(path, grid=None)
    runs, folder = plan.runs(sweep), tmp_path / "out"
    finish(folder, runs[0], 0.5)
    finish(folder, runs[2], 0.625, seconds=120.0)
    finish(folder, runs[1], 0.25)
    text = table.write(sweep, runs, folder).splitlines()
    assert text[2].startswith("| sparse | 0.35 M | 6.2 M | ")
    assert text[2].endswith(" | 56.25 % (50.00 .. 62.50) | 0.05 (0.05 .. 0.05) | 2 | 4:30 |")
    assert " | 25.00 % | 0.05 | 1 of 2 | 3:00 |" in text[3]
    record = json.loads((folder / "table.json").read_text())
    assert record["rows"][0]["values"]["finetune.top1"] == {"0": 0.5, "1": 0.625}
    first = (folder / "table.svg").read_bytes()
    table.write(sweep, runs, folder)
    assert (folder / "table.svg").read_bytes() == first, "the same figures are the same picture"


def test_a_run_is_finished_with_all_of_its_stages_and_its_own_recipe_alone(path, tmp_path):
    sweep = load(path, grid=None)
    run = plan.runs(sweep)[0]
    assert not is_finished(tmp_path, run)
    finish(tmp_path, run, 0.5)
    assert is_finished(tmp_path, run)
    summary = tmp_path / run.name / "summary.json"
    whole = json.loads(summary.read_text())
    summary.write_text(json.dumps({"stages": whole["stages"][:-1]}))
    assert not is_finished(tmp_path, run)
    summary.write_text(json.dumps(whole))
    other = plan.runs(load(path, grid=None, set={"moe.noise": 3.0}))[0]
    with pytest.raises(UserError, match=r"moe\.noise was 1\.0 and is now 3\.0; give the sweep another name"):
        is_finished(tmp_path, other)
