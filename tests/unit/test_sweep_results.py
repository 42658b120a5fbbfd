"""What the results of a sweep say, in tables and curves; and results that come from files of other machines."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.cli import sweep as sweep_command
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.sweep import curves, gather, plan, plot, records, table
from sparse_mlp_ds.sweep.execute import Execution
from sparse_mlp_ds.sweep.gather import Gathered
from tests.helpers.sweep_results import SWEEP, finish, finished, planned, tables

REPOSITORY = Path(__file__).parents[2]
KEYS = [
    *("sweep", "variant", "seed", "stage", "top1", "loss", "train_loss", "params", "params_active", "macs", "steps"),
    *("images", "seconds", "commit"),
]


@pytest.fixture(name="finished")
def _finished(tmp_path):
    return finished(tmp_path)


def test_results_are_one_line_for_each_stage_with_these_keys(finished):
    sweep, runs, folder = finished
    tables(sweep, runs, folder)
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(list(line) == KEYS for line in lines)
    sparse = lines[0]
    assert (sparse["variant"], sparse["seed"], sparse["stage"], sparse["commit"]) == ("sparse", 0, "finetune", "a" * 12)
    assert (sparse["top1"], sparse["loss"], sparse["steps"], sparse["images"]) == (0.8, 1.25, 6, 600)
    # The last epoch is steps 4 to 6: one step of loss 3, and two steps of which the record has the mean.
    assert sparse["train_loss"] == pytest.approx((3 + 2 * 1.5) / 3)
    assert sparse["params"] > sparse["params_active"] and sparse["seconds"] == 100
    known = records.read(folder / "results.jsonl")
    stage = known.stage(("sparse", 0), "finetune")
    assert [(point.step, point.images, point.top1, point.loss) for point in stage.curve] == [(3, 300, 0.5, 2.0)]
    assert [point.step for point in stage.routing] == [1, 3, 4, 6]
    assert stage.routing[-1].layers == {"3.moe_c": {"load_cv": 0.5, "dropped": 0.25, "dead": 1, "entropy": 0.75}}
    assert known.details["sparse", 0].recipe.keys().isdisjoint({"checkpoint", "log"})


def test_the_page_has_differences_with_both_intervals_and_routing(finished):
    sweep, runs, folder = finished
    text, written = Gathered(sweep, runs, folder).write()
    (row,) = [line for line in text.splitlines() if line.startswith("| mixer | finetune.top1 |")]
    # Two of ten images are lost in every seed: no spread over seeds, and (2 lost) +- over images.
    assert row.startswith(
        "| mixer | finetune.top1 | -20.00 | -20.00 .. -20.00 | -50.00 .. +0.00 | 3 | not significant, "
    )
    assert "| sparse | finetune | moe_c | 0.500 | 25.0 % | 1.0 | 0.75 |" in text
    assert "table.differences.svg" in written and "table.curves.svg" in written
    svg = {name: (folder / name).read_bytes() for name in written if name.endswith(".svg")}
    Gathered(sweep, runs, folder).write()
    assert svg == {name: (folder / name).read_bytes() for name in svg}, "the same figures are the same pictures"
    drawn = json.loads((folder / "table.json").read_text())
    assert drawn["differences"][0]["difference"]["by_seed"].keys() == {"0", "1", "2"}


def test_what_was_measured_is_called_images_or_sequences(finished):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs)
    page = gather.page_of_file(folder / "results.jsonl", sweep, runs)
    assert "over held-out images" in table.markdown(page) and "over images" in table.markdown(page)
    for details in page.records.details.values():
        details.recipe["stages"]["finetune"]["kind"] = "finetune_text"
    assert "over held-out sequences" in table.markdown(page) and "images" not in table.markdown(page)
    labels = [axes.get_xlabel() for axes in plot.differences(page).axes]
    assert "thin: over sequences;" in labels[0]
    for recipe in ({"name": "without stages"}, None):  # as the file of another program may have it
        others = {key: one.model_copy(update={"recipe": recipe}) for key, one in page.records.details.items()}
        assert replace(page, records=replace(page.records, details=others)).samples == "images"


def test_a_committed_file_gives_the_figures_of_the_page(tmp_path, capsys):
    """The intervals that docs/results.md has had before there was this command, of the mixer minus the sparse model."""
    path = REPOSITORY / "docs/results/cifar10_moco.jsonl"
    args = main._parser().parse_args(["sweep", "--table", str(path), "--out", str(tmp_path)])
    args.run(args)
    text = capsys.readouterr().out
    assert "| mixer | pretrain.knn_top1 | -1.75 | -3.34 .. -0.15 | - | 3 |  |" in text
    assert "| mixer | probe.top1 | -1.05 | -3.77 .. +1.67 | - | 3 | not significant |" in text
    assert "| mixer | finetune.top1 | +0.45 | -1.39 .. +2.28 | - | 3 | not significant |" in text
    assert (tmp_path / "cifar10_moco.md").read_text() in text
    assert all(list(json.loads(line)) == KEYS for line in path.read_text().splitlines())


def test_a_file_of_language_models_shows_perplexities(tmp_path, capsys):
    """As the sweep itself does, whose name is not given here; a loss would be 3.2."""
    path = REPOSITORY / "docs/results/mlm_16_epochs.jsonl"
    args = main._parser().parse_args(["sweep", "--table", str(path), "--out", str(tmp_path)])
    args.run(args)
    text = capsys.readouterr().out
    assert "| mlm.perplexity |" in text.splitlines()[0] and "| 24." in text and "loss" not in text.splitlines()[0]
    known = records.read(path)
    for details in known.details.values():  # as they are after answering questions on text
        for stage in details.stages.values():
            stage.metrics["f1"] = stage.metrics.pop("perplexity") / 100
    records.write(tmp_path / "answers.jsonl", known)
    about = gather.page_of_file(tmp_path / "answers.jsonl").about
    assert about.metrics == ("perplexity.f1", "mlm.f1")


def test_a_sweep_goes_on_from_results_of_a_different_machine(finished, tmp_path):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs[:4])
    committed = tmp_path / "committed.jsonl"
    (folder / "results.jsonl").rename(committed)
    (folder / "results.details.jsonl").rename(records.details_of(committed))
    here = tmp_path / "here"
    gathered = Gathered(sweep, runs, here, committed)
    execution = Execution(sweep, runs, here, print, gathered.recorded(), gathered.seconds())
    assert execution.waiting == runs[4:] and execution.rest() == "2 runs are left, about 3:21"
    finish(here, runs[4])
    gathered.update(runs[4:5])
    text = table.markdown(gather.page_of_file(here / "results.jsonl", sweep, runs))
    assert "| 3 | 1:41 |" in text.splitlines()[2] and "| 2 of 3 | 1:40 |" in text.splitlines()[3]
    again = Gathered(sweep, runs, here)
    assert again.recorded() == {run.name for run in runs[:5]}, "its own file has them all"
    assert again.known.stage(("sparse", 1), "finetune").hits, "and what is beside"
    assert gathered.metrics()[runs[0].name]["finetune"] == {"top1": 0.8, "loss": 1.25, "ece": 0.1}


def test_results_that_do_not_belong_to_the_sweep_are_refused(finished, tmp_path):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs)
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines()

    def said(*changed, **changes):
        other, its_runs = planned(tmp_path, **changes)
        path.write_text("\n".join(changed or lines) + "\n")
        with pytest.raises(UserError) as error:
            Gathered(other, its_runs, tmp_path / "new", path)
        return str(error.value)

    noise = {"set": SWEEP["set"] | {"moe.noise": 3.0}}
    assert f"{path}: sparse_seed-0: moe.noise was 1.0 and is now 3.0; give the sweep another name" in said(**noise)
    assert f"{path}, line 1: a result of sweep tried, not of theirs; results of one" in said(name="theirs")
    assert f"{path}, line 7: sparse, seed 0, stage finetune is there twice; keep one" in said(*lines, lines[0])
    assert f"{path}, line 2: no JSON object; restore the file" in said(lines[0], lines[1][:-9])
    assert f"{path}, line 1: top1: Input should be a valid number" in said(lines[0].replace("0.8", '"x"'))
    assert f"{path}, line 1: top: unknown key; did you mean 'top1'?" in said(lines[0].replace('"top1"', '"top"'))
    assert f"{path}: holds no results; give a file that a sweep has written" in said("")
    records.details_of(path).unlink()
    wider = {"variants": SWEEP["variants"] | {"sparse": {"model.channel_hidden": 99}}}
    assert "params of the model was" in said(**wider) and "and is now" in said(**wider)


def test_learning_curves_over_steps_and_multiply_accumulates(finished):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs)
    page = gather.page_of_file(folder / "results.jsonl", sweep, runs)
    steps, macs, *routing = curves.figure(page).axes
    sparse = steps.get_lines()[0]
    assert sparse.get_xdata().tolist() == [3, 6] and sparse.get_ydata().tolist() == pytest.approx([50, 80])
    per_image = gather.cost_of(runs[0].recipe.spec).macs
    assert macs.get_lines()[0].get_xdata().tolist() == pytest.approx([300e-12 * per_image, 600e-12 * per_image])
    assert [axes.get_lines()[0].get_ydata()[-1] for axes in routing] == [0.5, 0.25, 0.75]
    compared = plot.differences(page).axes[0]
    assert any(line.get_xdata()[0] == pytest.approx(-20) for line in compared.get_lines())


def test_the_command_takes_a_sweep_or_a_results_file_after_table(finished, tmp_path, monkeypatch):
    sweep, runs, folder = finished
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tried.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))

    def call(*arguments):
        args = main._parser().parse_args(["sweep", *arguments])
        args.run(args)

    call("--table", "tried.yaml", "--out", "out")  # as before there were results files
    assert (folder / "table.md").exists() and (folder / "results.jsonl").exists()
    call("tried.yaml", "--table", "out/results.jsonl")
    assert (folder / "results.md").read_text() == (folder / "table.md").read_text()
    with pytest.raises(UserError, match="no sweep is given; name one, or a results file with --table FILE"):
        call()
    with pytest.raises(UserError, match=r"results none.jsonl: No such file or directory; give a file that a sweep"):
        call("--table", "none.jsonl")
    with pytest.raises(SystemExit):
        call("tried.yaml", "--jobs", "many")
    args = main._parser().parse_args(["sweep", "tried.yaml", "--mirror", "s3://bucket/tried", "--jobs", "auto"])
    mirrored = sweep_command._changed(plan.load("tried.yaml"), args)
    assert mirrored.jobs == "auto"
    assert plan.runs(mirrored)[0].recipe.checkpoint.mirror == "s3://bucket/tried/sparse_seed-0"
    assert not gather.changed_recipe(plan.runs(mirrored)[0], Gathered(sweep, runs, folder).known), "only a place"


def test_the_table_of_a_file_shows_the_chosen_settings_against_the_first_of_them(finished, tmp_path, capsys):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs)
    file = folder / "results.jsonl"

    def call(*arguments):
        args = main._parser().parse_args(["sweep", "--table", *arguments])
        args.run(args)

    call(str(file), "--out", str(tmp_path / "turned"), "--settings", "mixer", "sparse")
    written = (tmp_path / "turned/results.md").read_text()
    assert [line.split("|")[1].strip() for line in written.splitlines()[2:4]] == ["mixer", "sparse"]
    assert "Difference to mixer, paired by seed" in written
    turned = gather.page_of_file(file, sweep, runs, ("mixer", "sparse"))
    (there,), (back,) = gather.page_of_file(file).differences, turned.differences
    assert back.difference.mean == pytest.approx(-there.difference.mean) != 0
    with pytest.raises(UserError, match=r"results\.jsonl: has no setting 'spars', but sparse, mixer"):
        call(str(file), "--settings", "spars")
    with pytest.raises(UserError, match="--settings chooses from a results file; name it with --table FILE"):
        args = main._parser().parse_args(["sweep", "tried.yaml", "--settings", "sparse"])
        args.run(args)


def test_the_file_has_the_order_of_the_sweep_whichever_run_ends_first(finished):
    sweep, runs, folder = finished
    Gathered(sweep, runs, folder).update(runs[3:])
    Gathered(sweep, runs, folder).update(list(reversed(runs[:3])))
    for file in ("results.jsonl", "results.details.jsonl"):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        assert [(line["variant"], line["seed"]) for line in lines] == [run.key for run in runs]
    assert gather.page_of_file(folder / "results.jsonl").rows[0].setting == "sparse"


def test_twenty_settings_have_twenty_colours():
    from matplotlib.colors import to_hex

    colours = [curves._colour(place) for place in range(20)]
    assert len(set(colours)) == 20 and colours[:10] == [to_hex(f"C{place}") for place in range(10)]
