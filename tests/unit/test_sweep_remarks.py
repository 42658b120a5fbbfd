"""What the tables of a sweep say is to be minded: costs, commits, recipes, images and data that differ."""

import json

import pytest

from sparse_mlp_ds.sweep import gather
from sparse_mlp_ds.sweep.gather import Gathered
from tests.helpers.sweep_results import finish, finished, planned, tables, text_of


@pytest.fixture(name="finished")
def _finished(tmp_path):
    return finished(tmp_path)


def test_variants_that_cost_differently_say_so(finished):
    sweep, runs, folder = finished
    text = tables(sweep, runs, folder)
    costs = {run.setting: gather.cost_of(run.recipe.spec).macs for run in runs}
    share = f"{100 * (costs['mixer'] / costs['sparse'] - 1):+.1f} %"
    assert f"M ({share})" in text.splitlines()[3] and f"MACs {share} |" in text
    assert f"Not at equal cost: the MACs of mixer ({share}) differ from those of sparse." in text
    equal, its_runs = planned(folder.parent, variants={"sparse": {}, "noise": {"moe.noise": 0}})
    finish(folder.parent / "equal", its_runs[0])
    assert "equal cost" not in tables(equal, its_runs, folder.parent / "equal")


def test_results_of_different_commits_recipes_images_and_data_are_marked(tmp_path):
    sweep, runs = planned(tmp_path, seeds=[0, 1])
    for run, commit, data, images in zip(runs, "abaa", "dddx", (600, 500, 600, 600), strict=True):
        finish(tmp_path / "out", run, commit * 40, data, images, dirty=commit == "b")
    text = tables(sweep, runs, tmp_path / "out")
    row = next(line for line in text.splitlines() if line.startswith("| mixer | finetune.top1 |"))
    assert " .. -20.00 | - | 2 | " in row, "runs that were measured on different images have no interval over images"
    assert "different number of images, different commits |" in row
    assert f"{'b' * 12}-dirty: mixer seed 0" in text and "had changes that no commit has" in text
    details = tmp_path / "out/results.details.jsonl"
    lines = [json.loads(line) for line in details.read_text().splitlines()]
    lines[1]["recipe"]["moe"]["noise"] = 7.0
    assert (lines[1]["variant"], lines[1]["seed"]) in (("mixer", 0), ("sparse", 1))
    details.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = gather.page_of_file(tmp_path / "out/results.jsonl", sweep, runs)
    name = f"{lines[1]['variant']}_seed-{lines[1]['seed']}"
    assert (
        f"{name} is of a different recipe than sweep tried has now: moe.noise was 7.0 and is now 1.0." in page.remarks
    )
    alone = gather.page_of_file(tmp_path / "out/results.jsonl")
    assert "is of a different recipe than seed 0: moe.noise was" in text_of(alone)


def test_results_of_a_version_without_a_key_are_of_one_recipe(finished):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs)
    details = folder / "results.details.jsonl"
    lines = [json.loads(line) for line in details.read_text().splitlines()]
    for line in lines:
        del line["recipe"]["stages"]["finetune"]["label_fraction"]
    details.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for page in (
        gather.page_of_file(folder / "results.jsonl"),
        gather.page_of_file(folder / "results.jsonl", sweep, runs),
    ):
        assert "different recipe" not in text_of(page)


def test_runs_that_start_from_weights_of_their_own_seed_have_one_recipe(tmp_path):
    start = "stages.finetune.init_from.path"
    sweep, runs = planned(tmp_path, variants={"sparse": {start: "runs/a_seed-{seed}"}, "mixer": {}}, seeds=[0, 1])
    for run in runs:
        finish(tmp_path / "out", run)
    tables(sweep, runs, tmp_path / "out")
    assert "different recipe" not in text_of(gather.page_of_file(tmp_path / "out/results.jsonl"))
    details = tmp_path / "out/results.details.jsonl"
    details.write_text(details.read_text().replace("runs/a_seed-1", "runs/a_seed-0"))
    remarks = text_of(gather.page_of_file(tmp_path / "out/results.jsonl"))
    assert f"sparse: seed 1 is of a different recipe than seed 0: {start} was" in remarks
