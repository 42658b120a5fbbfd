"""A run and its mirror: what is fetched at its start, what is refused, and what the end of the run waits for."""

from types import SimpleNamespace

import pytest

from sparse_mlp_ds.checkpoints import writer
from sparse_mlp_ds.checkpoints.mirror import Mirror
from sparse_mlp_ds.checkpoints.mirror_sync import MirrorSync
from sparse_mlp_ds.errors import StoppedError, UserError
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import mirroring, plan, run_folder
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.train.run_folder import Progress, RunFolder
from sparse_mlp_ds.watchdog.client import Watch
from tests.helpers.launcher import MOE

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def job(tmp_path):
    digits.make(tmp_path / "digits")
    data = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    mirror = [f"checkpoint.mirror=file://{tmp_path}/mirror"]

    def made(*overrides, out="run", resume="auto"):
        return resolve("digits", MOE, [*data, *mirror, *overrides], str(tmp_path / out), resume, world=1)

    return made


def saved(job, step, **about):
    """Leave a checkpoint, without tensors, in a run's folder."""
    progress = Progress(
        stage="pretrain", stage_step=step, step=step, data=job.data_fingerprint, negatives=job.negatives("pretrain")
    )
    recipe = job.recipe.model_dump(mode="json")
    about = {"progress": vars(progress), "recipe": recipe, "ds_config": job.ds_config.raw} | about
    writer.save(job.out / "checkpoints", step, [], about)


def uploaded(job):
    MirrorSync(job.out, Mirror(job.recipe.checkpoint.mirror))()


def test_an_empty_run_folder_goes_on_from_the_mirror_and_says_so(job, capsys):
    saved(job(), 5)
    (job().out / "metrics.jsonl").write_text('{"step": 5}\n')
    uploaded(job())
    fresh = job(out="fresh")
    run_folder.check(fresh)
    assert not fresh.out.exists()
    assert f"mirror {fresh.recipe.checkpoint.mirror}, which holds step_5" in plan.plan(fresh).splitlines()
    folder = RunFolder(fresh)
    assert folder.start.path == fresh.out / "checkpoints/step_5" and folder.progress.step == 5
    assert (fresh.out / "metrics.jsonl").read_text() == '{"step": 5}\n'
    url = fresh.recipe.checkpoint.mirror
    assert f"{folder.start.path} and the files of the run beside it were fetched from {url}" in capsys.readouterr().out


def test_a_run_folder_that_is_further_keeps_its_own(job, capsys):
    saved(job(), 5)
    uploaded(job())
    saved(job(), 10)
    assert RunFolder(job()).progress.step == 10
    assert "fetched" not in capsys.readouterr().out


def test_an_older_run_folder_is_brought_up_to_the_mirror(job):
    saved(job(), 5)
    uploaded(job())
    older = job(out="older")
    saved(older, 3)
    assert RunFolder(older).progress.step == 5
    assert sorted(path.name for path in (older.out / "checkpoints").iterdir()) == ["step_3", "step_5"]


def test_the_precision_is_that_with_which_the_run_began(job):
    assert job().ds_config.precision == "float32"
    raw = job().ds_config.raw
    saved(job(), 5, ds_config=raw | {"bf16": {"enabled": True}})
    uploaded(job())
    assert job(out="fresh").ds_config.precision == "bf16"
    saved(job(out="further"), 10, ds_config=raw)
    assert job(out="further").ds_config.precision == "float32"  # its own checkpoint is newer


def test_a_mirror_of_a_different_run_is_refused(job):
    saved(job(), 5)
    uploaded(job())
    with pytest.raises(
        UserError, match=r"mirror: holds step_5 of a different run \(train.seed was 0 and is now 1\); give this run a"
    ) as caught:
        run_folder.check(job("train.seed=1", out="fresh"))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match=r"holds step_5 of an earlier run, which --resume never keeps; give this run a"):
        run_folder.check(job(out="fresh", resume="never"))


def test_a_mirror_that_cannot_be_written_is_refused(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^checkpoint.mirror file://.*: .*; correct the URL or its credentials, or set"
    ):
        job(f"checkpoint.mirror=file://{tmp_path}/file/mirror")
    with pytest.raises(UserError, match=r"^--set checkpoint.mirror: "):
        job("checkpoint.mirror=/no/url")


class UnwantedError(Exception):
    pass


@pytest.mark.parametrize("end", [None, StoppedError("stopped"), UnwantedError()], ids=["done", "stopped", "failed"])
def test_the_end_of_a_run_waits_for_the_upload_unless_it_fails(job, monkeypatch, end):
    done = []

    class Uploader:
        def __init__(self, run, url, say):
            self.run, self.url = run, url

        def look(self):
            done.append("look")

        def finish(self, seconds):
            done.append(seconds)

        def close(self):
            done.append("close")

    monkeypatch.setattr(mirroring, "Uploader", Uploader)
    folder = SimpleNamespace(job=job("train.timeout_seconds=40"), path=job().out)
    try:
        with mirroring.mirroring(folder, Watch()) as written:
            written()
            if end:
                raise end
    except (StoppedError, UnwantedError) as error:
        assert error is end
    assert done == ["look", "close" if isinstance(end, UnwantedError) else 40]
    assert mirroring.FINISH_SECONDS == 300
