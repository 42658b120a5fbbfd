"""The best checkpoint of a run: found, exported, protected, and named."""

import json
import shutil

import pytest

from sparse_mlp_ds.checkpoints import best, manifest, retention
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.train.run_folder import RunFolder
from tests.helpers import version_0_1_0 as old
from tests.helpers.launcher import REPOSITORY
from tests.helpers.made_checkpoints import call, edit, finished, save
from tests.helpers.weight_files import SPARSE, make


def validation(step, checkpoint=True):
    return {"step": step, "top1": 0.5} | ({"checkpoint": f"step_{step}"} if checkpoint else {})


def going_on(step, best=None, done=()):
    return {"stage": "finetune", "stage_step": step, "step": step, "done": list(done), "best": best or {}}


def at_end(step, of_entry, before=None):
    progress = finished(step=step) | {"best": before or {}}
    progress["done"][0]["best"] = of_entry
    return progress


def test_the_stage_that_goes_on_comes_before_finished_ones():
    entry = {"name": "first", "best": validation(3)}
    assert best.kept(going_on(9, validation(7), [entry])) == [validation(7), validation(3)]
    assert best.kept(going_on(9, validation(7, checkpoint=False), [entry])) == [validation(3)]
    assert best.kept(at_end(9, validation(9), before=validation(7))) == [validation(9)]
    assert best.steps(at_end(9, validation(9), before=validation(7))) == [9, 7], "the stage may go on"
    for damaged in ({}, {"best": 3}, {"best": {"step": "x", "checkpoint": "y"}}, {"done": [3, {"best": []}]}):
        assert best.kept(damaged) == best.steps(damaged) == []


def test_the_best_is_exported_and_said_to_be_of_its_step(tmp_path, capsys):
    run = tmp_path / "run"
    save(run / "checkpoints", 2, going_on(2, validation(2)), make(SPARSE, 0), make(SPARSE, 5))
    save(run / "checkpoints", 4, at_end(4, validation(2)), make(SPARSE, 1), make(SPARSE, 6))
    for flags, step in (((), 4), (("--best",), 2)):
        code, said, errors = call(capsys, "export", run, tmp_path / f"out_{step}", *flags)
        assert (code, errors) == (0, []) and f"of stage finetune at step {step}" in said
    found, figures = best.find_best(run)
    assert found.path.name == "step_2" and figures == validation(2)


def test_where_there_is_no_best_it_is_said_in_one_line(tmp_path, capsys):
    run = tmp_path / "run"
    path = save(run / "checkpoints", 4, finished(step=4))
    for source, part in ((run, "no stage kept a best checkpoint; set keep_best: true"), (path, "a single checkpoint")):
        code, _, (line,) = call(capsys, "export", source, tmp_path / "out", "--best")
        assert code == 2 and part in line
    edit(path, lambda tree: tree["progress"]["done"][0].update(best=validation(2)))
    code, _, (line,) = call(capsys, "export", run, tmp_path / "out", "--best")
    assert code == 2 and "step_2: not a checkpoint" in line
    assert call(capsys, "export", run, tmp_path / "out")[0] == 0
    code, _, (line,) = call(capsys, "export", tmp_path / "out", tmp_path / "out_2", "--best")
    assert code == 2 and "is an export already" in line


def test_pruning_by_hand_leaves_the_best_of_the_newest_checkpoint(tmp_path):
    for step, of in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(tmp_path, step, going_on(step, validation(of)), moments=False)
    removable, damaged = retention.removable(tmp_path, keep=1)
    assert sorted(path.name for path in removable) == ["step_1", "step_3"] and damaged == []


def test_the_name_follows_the_best(tmp_path):
    best.name_it(tmp_path, going_on(3, validation(3)))
    assert json.loads((tmp_path / "best.json").read_text())["checkpoint"] == "step_3"
    best.name_it(tmp_path, going_on(3))
    assert not (tmp_path / "best.json").exists()
    best.name_it(tmp_path / "missing", going_on(3, validation(3)))  # costs the file, nothing more


def test_a_best_checkpoint_that_is_gone_is_forgotten_aloud(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = old.run_folder(tmp_path)
    path = run / "checkpoints/step_3"
    edit(path, lambda tree: tree["progress"].update(best=validation(2) | {"stage_step": 2}, without_gain=1))
    zero_1 = str(REPOSITORY / "ds_configs/moe_zero1.json")
    folder = lambda: RunFolder(resolve(str(old.FOLDER / "recipe.yaml"), zero_1, [], str(run), "auto", 2))  # noqa: E731
    progress = folder().progress
    assert progress.best == {} and progress.without_gain == 1
    assert "the best checkpoint, step_2, is not there; the next validation is the best" in capsys.readouterr().out
    edit(path, lambda tree: tree["progress"].update(best=validation(3) | {"stage_step": 3}))
    assert folder().progress.best["step"] == 3 and "is not there" not in capsys.readouterr().out
    assert json.loads((run / "checkpoints/best.json").read_text())["step"] == 3


def test_going_back_forgets_a_best_that_a_later_one_replaced(tmp_path, monkeypatch, capsys):
    """The later best, step 6, is set aside with all later checkpoints."""
    monkeypatch.chdir(tmp_path)
    run = old.run_folder(tmp_path)
    for step, of in ((3, 2), (6, 6)):
        path = run / f"checkpoints/step_{step}"
        if step == 6:
            shutil.copytree(old.CONTINUED, path)
        changes = {"best": validation(of) | {"stage_step": of}, "done": []}
        edit(path, lambda tree, changes=changes: tree["progress"].update(changes))
    zero_1 = str(REPOSITORY / "ds_configs/moe_zero1.json")
    folder = RunFolder(resolve(str(old.FOLDER / "recipe.yaml"), zero_1, [], str(run), "auto", 2))
    assert folder.progress.best["step"] == 6 and "is not there" not in capsys.readouterr().out
    folder.go_back(manifest.open_checkpoint(run / "checkpoints/step_3"), 5)
    assert folder.progress.best == {} and folder.progress.step == 3
    assert "the best checkpoint, step_2, is not there" in capsys.readouterr().out
    assert not (run / "checkpoints/best.json").exists()


@pytest.mark.parametrize("bad", [3, [], {"step": 1}, {"step": 1, "top1": "much"}, {"step": -1, "top1": 0.5}])
def test_a_best_that_is_none_is_refused_in_one_line(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    run = old.run_folder(tmp_path)
    edit(run / "checkpoints/step_3", lambda tree: tree["progress"].update(best=bad))
    zero_1 = str(REPOSITORY / "ds_configs/moe_zero1.json")
    with pytest.raises(UserError, match="its progress cannot be read"):
        RunFolder(resolve(str(old.FOLDER / "recipe.yaml"), zero_1, [], str(run), "auto", 2))
    assert manifest.read_manifest(run / "checkpoints/step_3")["progress"]["best"] == bad
