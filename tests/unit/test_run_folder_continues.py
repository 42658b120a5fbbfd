"""Which checkpoint of a run folder is continued, and what happens to the others; on files that version 0.1.0 wrote."""

import json
import shutil
from dataclasses import replace

import pytest

from sparse_mlp_ds.checkpoints import manifest, retention
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import job as jobs
from sparse_mlp_ds.train import run_folder
from sparse_mlp_ds.train.run_folder import RunFolder
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY

USERS = ("step_3_best", "step_3.bak", "step_", "step_-3", "step_03", "step_three", "step_3 (copy)")
"""Folders that a user makes beside a run's checkpoints; each is a copy of a sound one."""
ZERO_1 = str(REPOSITORY / "ds_configs/moe_zero1.json")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with the checkpoints of step 3, in mid-stage, and of step 6, at the end of the stage."""
    monkeypatch.chdir(tmp_path)
    folder = old.run_folder(tmp_path)
    shutil.copytree(old.CONTINUED, folder / "checkpoints/step_6")
    return folder


def job(run, resume="auto", *overrides):
    return jobs.resolve(str(old.FOLDER / "recipe.yaml"), ZERO_1, list(overrides), str(run), resume, 2)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", USERS)
def test_a_users_folder_is_no_checkpoint_of_the_run(run, name):
    shutil.copytree(run / "checkpoints/step_3", run / "checkpoints" / name)
    assert [path.name for path in manifest.numbered(run / "checkpoints")] == ["step_6", "step_3"]
    retention.prune(run / "checkpoints/step_6", keep=1, protected=())
    assert names(run / "checkpoints") == sorted(["step_6", name]), "step_3 was the run's, the rest is the user's"


def test_the_age_is_in_the_manifest_not_in_the_name(run):
    (run / "checkpoints/step_3").rename(run / "checkpoints/step_50")
    found, _ = manifest.newest(run / "checkpoints")
    assert found.path.name == "step_6"


def test_what_was_just_written_stays(run):
    retention.prune(run / "checkpoints/step_3", keep=1, protected=())
    assert names(run / "checkpoints") == ["step_3", "step_6"]


@pytest.mark.parametrize("began", ["float32", "bf16"])
def test_a_resumed_run_keeps_the_precision_that_the_json_leaves_open(run, began):
    for step in (3, 6):
        path = run / f"checkpoints/step_{step}/manifest.json"
        content = json.loads(path.read_text())
        content["ds_config"]["bf16"] = {"enabled": began == "bf16"}
        path.write_text(json.dumps(content))

    def resumed(name, resume, gpu):
        recipe, at = str(old.FOLDER / "recipe.yaml"), str(run / "checkpoints/step_3") if resume == "step_3" else resume
        return jobs.resolve(recipe, name, [], str(run), at, 2, gpu).ds_config.precision

    for resume in ("auto", "step_3"):
        assert [resumed("moe_zero1", resume, gpu) for gpu in (True, False)] == [began, began]
    assert [resumed("moe_zero1", "never", gpu) for gpu in (True, False)] == ["bf16", "float32"], "a new run"
    assert resumed("moe_bf16", "auto", False) == "bf16", "what the JSON states goes first"


def test_later_checkpoints_are_set_aside_where_an_earlier_one_is_continued(run, capsys):
    (run / "previous-1").mkdir()
    folder = RunFolder(job(run, str(run / "checkpoints/step_3")))
    assert folder.progress.stage_step == 3
    assert names(run / "checkpoints") == ["step_3"] and names(run / "previous-2/checkpoints") == ["step_6"]
    assert "later checkpoints" in capsys.readouterr().out
    found, _ = manifest.newest(run / "checkpoints")
    assert found.path.name == "step_3", "a kill now and --resume auto go on with the earlier one"


@pytest.mark.parametrize("key", ["train.seed=7", "stages.train.batch_size=48", "stages.train.optimizer.base_lr=1.0"])
def test_a_checkpoint_is_not_continued_with_a_different_recipe(run, tmp_path, key):
    for resume, out in [(str(run / "checkpoints/step_3"), tmp_path / "new"), ("auto", run)]:
        with pytest.raises(UserError) as caught:
            run_folder.check(job(out, resume, key))
        (line,) = str(caught.value).splitlines()
        assert key.partition("=")[0] in line and "step_" in line


LATER = "{kind: finetune, epochs: 1, batch_size: 96, optimizer: {base_lr: 0.1}, view: {}}"


def test_stages_that_have_not_begun_may_change_come_and_go(run, tmp_path):
    began = job(run, "auto", f"stages.later={LATER}", "stages.last={kind: evaluate}").recipe.model_dump(mode="json")
    for step in (3, 6):
        path = run / f"checkpoints/step_{step}/manifest.json"
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(tree | {"recipe": began}))
    run_folder.check(job(run, "auto"))  # both are gone
    run_folder.check(job(run, "auto", f"stages.later={LATER}", "stages.later.epochs=7", f"stages.third={LATER}"))
    run_folder.check(job(tmp_path, str(run / "checkpoints/step_3"), "stages.anew={kind: evaluate}"))
    assert "later" not in RunFolder(job(run, "auto")).job.recipe.stages


def test_a_stage_that_has_begun_may_not_change_and_init_from_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"stages\.train\.epochs was 0\.43 and is now 3\.0.*; a stage's init_from"):
        run_folder.check(job(run, "auto", "stages.train.epochs=3"))
    late = tmp_path / "late.yaml"
    late.write_text(
        f"base: {old.FOLDER}/recipe.yaml\nstages:\n  early: {LATER.replace('finetune', 'supervised')}\n  train: {{}}\n"
    )
    with pytest.raises(UserError, match=r"step_6: stages\.early is new before stages\.train, which has begun; give"):
        run_folder.check(jobs.resolve(str(late), ZERO_1, [], str(run), "auto", 2))


def test_the_same_recipe_goes_on_elsewhere_too(run, tmp_path):
    run_folder.check(job(tmp_path / "new", str(run / "checkpoints/step_3")))


def test_a_damaged_config_yaml_is_no_obstacle(run):
    (run / "config.yaml").write_bytes(b"\xff{{{")
    run_folder.check(job(run))
    RunFolder(job(run))
    assert "batch_size" in (run / "config.yaml").read_text()


def test_a_stage_that_max_steps_ended_goes_on_when_it_is_raised(run, capsys):
    path = run / "checkpoints/step_6/manifest.json"
    tree = json.loads(path.read_text())
    assert [entry["steps"] for entry in tree["progress"]["done"]] == [6]
    longer = replace(job(run))
    longer.recipe.stages["train"].__dict__["epochs"] = 0.64  # nine steps; the recipe that began it says so too
    folder = RunFolder(longer)
    assert folder.progress.done == [] and folder.progress.stage_step == 6
    assert "had ended after 6 steps and may take 9 now: it goes on" in capsys.readouterr().out


def test_a_stage_that_others_started_from_stays_and_says_so(run, capsys):
    path = run / "checkpoints/step_6/manifest.json"
    tree = json.loads(path.read_text())
    tree["progress"] |= {"stage": "later", "done": [tree["progress"]["done"][0] | {"steps": 2}]}
    path.write_text(json.dumps(tree))
    folder = RunFolder(job(run))
    assert [entry["name"] for entry in folder.progress.done] == ["train"]
    assert "it stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("out, part", [("run/config.yaml", "is a file"), ("run/config.yaml/deeper", "is a file")])
def test_a_run_folder_that_cannot_be_is_one_line(run, tmp_path, out, part):
    with pytest.raises(UserError, match=f"--out .*{part}.*give a folder"):
        run_folder.check(job(tmp_path / out))
