"""Sweeps as data: the runs they have, their names, their table, and every mistake in one line."""

import io
import json

import pytest
import yaml
from rich.console import Console

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import page, plan, plot
from sparse_mlp_ds.sweep.execute import Execution, is_finished
from sparse_mlp_ds.sweep.gather import Gathered
from sparse_mlp_ds.sweep.live import LiveTable, live_table
from sparse_mlp_ds.sweep.results import Row

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


def test_wandb_shows_seeds_of_a_setting_under_names_of_their_own_in_one_group(path):
    runs = plan.runs(load(path))
    shown = {run.name: run.recipe.log.wandb for run in runs}
    assert len({one.name for one in shown.values()}) == len(runs) == 8
    assert len({one.group for one in shown.values()}) == 4 and {one.tags for one in shown.values()} == {("tried",)}
    one = shown["sparse_noise-0_base_lr-0.001_seed-1"]
    group = "tried-sparse_noise-0_base_lr-0.001"
    assert (one.group, one.name) == (group, f"{group}_seed-1")
    own = plan.runs(load(path, set={"log.wandb.group": "mine"}))
    assert {run.recipe.log.wandb.group for run in own} == {"mine"}


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
        ({"grid": {"a.b": [1], "c.b": [1]}}, "tried.yaml: grid: two keys have the same last part"),
        (
            {"grid": {"moe.noise": [1, 1]}},
            "tried: two runs are named sparse_noise-1_seed-0; give such values as variants",
        ),
        ({"grid": {"moe.noise": [0.5, "0.5"]}}, "tried: two runs are named sparse_noise-0.5_seed-0"),
        (
            {"variants": {"a": {"moe.noise": 1}}, "grid": {"moe.noise": [0, 2]}},
            "tried.yaml: variants.a: moe.noise is in grid too; remove one of the two",
        ),
        ({"set": {"train.seed": 3}}, "tried.yaml: train.seed is set by seeds; remove it"),
        ({"grid": {"name": ["a"]}}, "tried.yaml: name is set by the names of variants; remove it"),
        ({"jobs": 0}, "tried.yaml: jobs: give a number of runs from 1 on, or auto, not 0"),
        ({"jobs": "all"}, "tried.yaml: jobs: give a number of runs from 1 on, or auto, not 'all'"),
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
    figures = {"steps": 0, "images": 360, "seconds": seconds, "metrics": {"top1": top1, "ece": 0.05}}
    stages = [{"name": name} | figures for name in run.recipe.stages]
    (target / "summary.json").write_text(json.dumps({"stages": stages}))


def table_of(sweep, runs, folder):
    """The Markdown of what is finished, after writing everything."""
    return Gathered(sweep, runs, folder).write()[0]


def test_the_table_has_means_and_ranges_of_what_is_finished(path, tmp_path):
    sweep = load(path, grid=None)
    runs, folder = plan.runs(sweep), tmp_path / "out"
    finish(folder, runs[0], 0.5)
    finish(folder, runs[2], 0.625, seconds=120.0)
    finish(folder, runs[1], 0.25)
    text = table_of(sweep, runs, folder).splitlines()
    assert text[2].startswith("| sparse | 0.35 M | 6.18 M | ")
    assert text[2].endswith(" | 56.25 ± 8.84 % (50.00 .. 62.50) | 0.05 ± 0 (0.05 .. 0.05) | 2 | 4:30 |")
    assert " | 25.00 % | 0.05 | 1 of 2 | 3:00 |" in text[3]
    record = json.loads((folder / "table.json").read_text())
    assert record["rows"][0]["values"]["finetune.top1"] == {"0": 0.5, "1": 0.625}
    first = (folder / "table.svg").read_bytes()
    table_of(sweep, runs, folder)
    assert (folder / "table.svg").read_bytes() == first, "the same figures are the same picture"


def test_a_metric_that_no_finished_run_has_is_named(path, tmp_path):
    sweep = load(path, grid=None, metrics=["finetune.top1", "evaluate.top2"])
    runs, folder = plan.runs(sweep), tmp_path / "out"
    assert "No finished run" not in table_of(sweep, runs, folder)
    finish(folder, runs[0], 0.5)
    assert table_of(sweep, runs, folder).endswith("\n\nNo finished run has evaluate.top2; correct `metrics`.\n")


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


def test_the_plot_shows_differences_from_zero_with_a_bar_over_seeds(path, tmp_path):
    """Bars begin at no difference, and settings that hardly differ do not look as if they did."""
    sweep = load(path, grid=None)
    runs, folder = plan.runs(sweep), tmp_path / "out"
    for number, top1 in enumerate((0.5, 0.26, 0.54, 0.26)):
        finish(folder, runs[number], top1)
    table_of(sweep, runs, folder)
    svg = (folder / "table.svg").read_text()
    assert "finetune.top1: above the lowest setting, points" in svg
    assert "52.00 ± 2.83 % (50.00 .. 54.00)" in svg and "26.00 ± 0.00 % (26.00 .. 26.00)" in svg
    known = Gathered(sweep, runs, folder).known
    rows = page.rows_of(sweep, {"sparse": [0, 1], "mixer": [0, 1]}, {"sparse": (1, 1), "mixer": (1, 1)}, known)
    figure = plot.figure(sweep, rows)
    sparse, other = figure.axes[0].patches
    assert (sparse.get_x(), sparse.get_width(), other.get_width()) == (0, pytest.approx(26), 0)
    assert figure.axes[0].get_xlim()[0] == 0

    same = [Row(name, 1, 1, {"finetune.top1": {0: 0.26001, 1: 0.26}}, {}, 2) for name in "ab"]
    left, right = plot.figure(sweep, same).axes[0].get_xlim()
    assert right - left > 1, "a hundredth of a point is small"


def test_the_live_table_shows_what_is_finished_and_how_far_the_others_are(path, tmp_path):
    sweep = load(path, grid=None)
    runs, folder = plan.runs(sweep), tmp_path / "out"
    execution = Execution(sweep, runs, folder, print)
    live = LiveTable(sweep, runs, execution)
    finish(folder, runs[0], 0.5)
    execution.running.append(runs[1])
    assert "seed 0 starts" in shown(live.draw())
    (folder / runs[1].name).mkdir()
    record = {"stage": "finetune", "step": 3, "epoch": 0.52, "loss": 2.25, "eta_seconds": 75.0}
    lines = [json.dumps(record), json.dumps({"stage": "finetune", "step": 3, "result/top1": 0.1}), '{"stage": "fi']
    (folder / runs[1].name / "metrics.jsonl").write_text("\n".join(lines))
    execution.failed.append(runs[2])
    text = shown(live.draw())
    rows = [line.split() for line in text.splitlines() if line.startswith(("sparse", "mixer"))]
    assert [row[1] for row in rows] == ["1/2", "0/2"] and "50.00 %" in text and "seed 1 failed" in text
    assert "seed 0 finetune epoch 0.5 loss 2.250 eta 1:15" in text
    execution.running.clear()
    finish(tmp_path / "later", runs[1], 0.25)
    (tmp_path / "later" / runs[1].name / "summary.json").rename(folder / runs[1].name / "summary.json")
    (tmp_path / "later" / runs[1].name / "config.yaml").rename(folder / runs[1].name / "config.yaml")
    assert "25.00 %" in shown(live.draw()) and "eta" not in shown(live.draw())


def shown(drawn):
    console = Console(width=160, file=io.StringIO())
    console.print(drawn)
    return console.file.getvalue()


def test_what_is_no_terminal_gets_no_live_table(path, tmp_path):
    sweep = load(path, grid=None)
    console = Console(width=160, file=io.StringIO())
    with live_table(sweep, plan.runs(sweep), Execution(sweep, [], tmp_path, print), console):
        pass
    assert console.file.getvalue() == ""


def test_a_setting_may_name_the_run_of_its_own_seed(path):
    start = {"sparse": {"stages.pretrain.init_from.path": "runs/before/sparse_seed-{seed}/checkpoints/step_1"}}
    runs = plan.runs(load(path, variants=start, grid=None, set={"data.train": "tars/a-{000..001}.tar"}))
    found = [run.recipe.stages["pretrain"].init_from.path for run in runs]
    assert found == [f"runs/before/sparse_seed-{seed}/checkpoints/step_1" for seed in (0, 1)]
    assert {run.recipe.data.train[0].path for run in runs} == {"tars/a-{000..001}.tar"}


def test_each_run_has_a_mirror_of_its_own(path):
    runs = plan.runs(load(path, set={"checkpoint.mirror": "s3://bucket/sweep/"}, seeds=[0], grid={}))
    assert [run.recipe.checkpoint.mirror for run in runs] == [f"s3://bucket/sweep/{run.name}" for run in runs]
    assert all(f'checkpoint.mirror="s3://bucket/sweep/{run.name}"' in run.overrides for run in runs)
