"""What a run refuses to go on with: data that is not the data it began with."""

import json
import subprocess
import sys

import pytest

from sparse_mlp_ds.checkpoints import writer
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import run_folder
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.train.run_folder import Progress, RunFolder
from tests.helpers import text_sets
from tests.helpers.launcher import MOE


@pytest.fixture
def job(tmp_path):
    digits.make(tmp_path / "digits")
    overrides = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    return lambda: resolve("digits", MOE, overrides, str(tmp_path / "run"), "auto", world=1)


def stopped(job, **changes):
    """Leave a checkpoint, without tensors, as of a run that stopped."""
    about = {"data": job.data_fingerprint, "negatives": job.negatives("pretrain")}
    progress = Progress(stage="pretrain", stage_step=5, step=5, **about | changes)
    writer.save(job.out / "checkpoints", 5, [], {"progress": vars(progress), "recipe": {}})


def test_the_same_tars_go_on(job):
    stopped(job())
    assert RunFolder(job()).progress.stage_step == 5


@pytest.mark.parametrize("finished", [False, True])
def test_other_tars_are_refused_in_the_middle_of_a_stage_alone(job, tmp_path, finished):
    stopped(job(), done=[{"name": "pretrain"}] if finished else [])
    path = tmp_path / "digits/train/index.json"
    record = json.loads(path.read_text())
    record["shards"].pop()
    path.write_text(json.dumps(record))
    if finished:
        assert RunFolder(job()).progress.is_done("pretrain")
    else:
        with pytest.raises(UserError, match=r"step_5: data\.train has different tars.*--resume never"):
            RunFolder(job())


def test_a_stage_whose_queries_would_meet_others_is_refused(job):
    stopped(job(), negatives=63)
    with pytest.raises(UserError, match="had 63 negatives and would now have 127; go on with as many images"):
        RunFolder(job())


@pytest.mark.parametrize("changes", [{"unheard": 1}, {"step": "five"}, {"done": [3]}, {"done": None}])
def test_progress_that_is_none_is_refused_in_one_line(job, changes):
    progress = vars(Progress(stage="pretrain", stage_step=5, step=5)) | changes
    writer.save(job().out / "checkpoints", 5, [], {"progress": progress, "recipe": {}})
    with pytest.raises(UserError, match="step_5: damaged, or of a different version") as caught:
        RunFolder(job())
    assert len(str(caught.value).splitlines()) == 1


HOLD = "import sys, pathlib; from sparse_mlp_ds import files; held = files.claim(pathlib.Path(sys.argv[1]), 'job 7', 0)"


def test_two_runs_do_not_write_into_one_folder(job, monkeypatch):
    monkeypatch.setattr(run_folder, "CLAIM_SECONDS", 0.5)
    stopped(job())
    command = [sys.executable, "-c", f"{HOLD}; print(type(held).__name__, flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        [*command, job().out / run_folder.LOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"TextIOWrapper\n"
        with pytest.raises(UserError, match=r"another run writes there \(job 7\); wait for it, or give --out"):
            RunFolder(job())
        other.kill()  # however it ends, the folder is free again
    assert RunFolder(job()).progress.stage_step == 5


def test_figures_that_could_not_be_written_are_written_when_it_is_possible(job, capsys):
    folder = RunFolder(job())
    for name in ("evaluate.json", "summary.json"):
        (folder.path / name).mkdir()  # nothing can be written there
    folder.write("evaluate.json", {"top1": 0.5})
    folder.write_summary()
    assert capsys.readouterr().out.count("was not written, training goes on") == 3, "the first is tried with the second"
    for name in ("evaluate.json", "summary.json"):
        (folder.path / name).rmdir()
    folder.write_summary()
    assert json.loads((folder.path / "evaluate.json").read_text()) == {"top1": 0.5}
    assert json.loads((folder.path / "summary.json").read_text())["recipe"] == "digits"
    assert capsys.readouterr().out == ""


@pytest.fixture
def text_job(tmp_path):
    made = [text_sets.texts(40, classes=2), text_sets.texts(8, classes=2, first=100)]
    text_sets.make(tmp_path / "data", *made)
    stage = {"kind": "mlm", "steps": 2, "batch_size": 4, "optimizer": {"base_lr": 0.1}}
    sizes = {"length": text_sets.LENGTH, "vocabulary": text_sets.VOCABULARY, "width": 16, "depth": 2, "hidden": 24}
    recipe = {
        "name": "text",
        "data": {split: str(tmp_path / "data" / split) for split in ("train", "val")},
        "model": {"name": "gmlp_text_speeches"} | sizes,
        "stages": {"mlm": stage},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return lambda: resolve(str(tmp_path / "recipe.yaml"), MOE, [], str(tmp_path / "run"), "auto", world=1)


def test_a_run_on_text_keeps_its_tokenizer(text_job, tmp_path, capsys):
    one, two, kept = (tmp_path / name / TOKENIZER for name in ("data/train", "data/val", "run"))
    RunFolder(text_job())
    assert kept.read_bytes() == one.read_bytes() and TOKENIZER not in capsys.readouterr().out
    one.unlink()
    kept.unlink()
    RunFolder(text_job())
    assert kept.read_bytes() == two.read_bytes(), "that of the held-out rows is the same one"
    two.write_bytes(b"of different rows")
    RunFolder(text_job())
    assert TOKENIZER not in capsys.readouterr().out, "it is there already"
    kept.unlink()
    RunFolder(text_job())
    assert f"has no {TOKENIZER} of its rows beside index.json" in capsys.readouterr().out and not kept.exists()
