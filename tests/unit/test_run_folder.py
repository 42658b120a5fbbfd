"""What a run refuses to go on with: data that is not the data it began with."""

import json
import subprocess
import sys

import pytest

from sparse_mlp_ds.data import digits
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.job import resolve
from sparse_mlp_ds.train import checkpoint, run_folder
from sparse_mlp_ds.train.run_folder import Progress, RunFolder
from tests.e2e.launcher import MOE


@pytest.fixture
def job(tmp_path):
    digits.make(tmp_path / "digits")
    overrides = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    return lambda: resolve("digits", MOE, overrides, str(tmp_path / "run"), "auto", world=1)


def stopped(job, **changes):
    """Leave a checkpoint, without tensors, as of a run that stopped."""
    about = {"data": job.data_fingerprint, "negatives": job.negatives("pretrain")}
    progress = Progress(stage="pretrain", stage_step=5, step=5, **about | changes)
    checkpoint.save(job.out / "checkpoints", 5, [], {"progress": vars(progress), "recipe": {}})


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
        with pytest.raises(UserError, match=r"step_5: data\.train has other tars.*--resume never"):
            RunFolder(job())


def test_a_stage_whose_queries_would_meet_others_is_refused(job):
    stopped(job(), negatives=63)
    with pytest.raises(UserError, match="had 63 negatives and would now have 127; go on with as many images"):
        RunFolder(job())


@pytest.mark.parametrize("changes", [{"unheard": 1}, {"step": "five"}, {"done": [3]}, {"done": None}])
def test_progress_that_is_none_is_refused_in_one_line(job, changes):
    progress = vars(Progress(stage="pretrain", stage_step=5, step=5)) | changes
    checkpoint.save(job().out / "checkpoints", 5, [], {"progress": progress, "recipe": {}})
    with pytest.raises(UserError, match="step_5: damaged, or of another version") as caught:
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
