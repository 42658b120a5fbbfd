"""The shipped batch scripts under a real Slurm on four hosts, one rank each."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.checkpoints.reader import Reader
from tests.helpers import records
from tests.helpers.launcher import REPOSITORY
from tests.helpers.slurm import Slurm, why_not

_reason = why_not()
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(_reason), reason=_reason)]

# The hosts have no GPUs and few cores; everything else is as the scripts say.
HERE = ("--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=0", "--time=30")

STEPS = 12
USR1 = ("scancel", "--signal=USR1", "--batch")  # what --signal sends before the time limit
REQUEUE = ("scontrol", "requeue")
PREEMPT = ("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("lab")) as slurm:
        yield slurm


@pytest.fixture
def folder(tmp_path):
    """A working folder in which the scripts find what they find in the repository's."""
    for name in ("train.py", "ds_configs", "launcher"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


class Job:
    """A submitted script; leaving the context cancels what is left of it."""

    def __init__(self, cluster: Slurm, folder: Path, script: str, *arguments: str, options=(), **variables: str):
        self.cluster, self.folder = cluster, folder
        submit = ("sbatch", "--parsable", *HERE, *options, f"launcher/{script}", *arguments)
        self.number = cluster.slurm(*submit, cwd=folder, PYTHONPATH=str(REPOSITORY), **variables).strip()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.cluster.slurm("scancel", self.number)
        self.wait_until(lambda: not self.is_queued())

    def is_queued(self) -> bool:
        """Say whether Slurm still has something to do with the job."""
        return bool(self.cluster.slurm("squeue", "--noheader", f"--jobs={self.number}"))

    def states(self) -> set[str]:
        """Return the states of the job, of all its tasks if it is an array."""
        shown = self.cluster.slurm("scontrol", "show", "job", "--oneliner", self.number)
        return {part.removeprefix("JobState=") for part in shown.split() if part.startswith("JobState=")}

    def restarts(self) -> int:
        """Return how often Slurm has put the job back into the queue."""
        shown = self.cluster.slurm("scontrol", "show", "job", "--oneliner", self.number)
        return int(next(part for part in shown.split() if part.startswith("Restarts=")).removeprefix("Restarts="))

    def wait(self) -> set[str]:
        """Return the states it ended in."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}
        self.wait_until(lambda: self.states() <= ended)
        return self.states()

    def wait_until(self, happened: Callable[[], bool], seconds: float = 400) -> None:
        """Wait for a condition; fails with what was printed if the time passes first."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.3)

    def output(self) -> str:
        """Return what the script and the nodes have printed."""
        logs = [*self.folder.glob("*.log"), *self.folder.glob("runs/**/*.log")]
        return "".join(f"{path}:\n{path.read_text(errors='replace')}" for path in sorted(logs))


def _steps(run: Path) -> list[int]:
    return [record["step"] for record in records.of_steps(run)]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    found, passed_over = manifest.newest(run / "checkpoints")
    assert found and not passed_over
    read = Reader(found)
    return {name: read(name, 0, torch.Size(shape).numel()) for name, shape in read.shapes.items()}


def _summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_preempted_three_times_pretraining_ends_with_the_same_bits_and_is_fine_tuned_and_probed(cluster, folder):
    pretrain = ("pretrain.sbatch", "--set", f"train.max_steps={STEPS}", "--set", "log.every_steps=1")
    run, log = folder / "runs/preempted", folder / "runs/preempted/logs/node1.log"
    # Two restarts without progress in a row would end it.
    with Job(cluster, folder, *pretrain, OUT="runs/preempted", MAX_RESTARTS="1") as job:
        for way in (USR1, REQUEUE, PREEMPT):
            restarts, begun = job.restarts(), max(_steps(run), default=0)
            if way is REQUEUE:  # in the middle
                job.wait_until(lambda step=begun: max(_steps(run), default=0) > step)
            else:  # before the first step, so that few are taken on any machine
                job.wait_until(lambda n=restarts: log.exists() and log.read_text().count("ranks 4, ep_size") > n)
            cluster.slurm(*way, *(() if way is PREEMPT else (job.number,)))
            job.wait_until(lambda before=restarts: job.restarts() > before)
        assert job.wait() == {"COMPLETED"}, job.output()
        assert job.restarts() == 3
        assert job.output().count("exit code 85") >= 2, job.output()
    assert not (run / "stop").exists()

    with Job(cluster, folder, *pretrain) as job:
        assert job.wait() == {"COMPLETED"} and job.restarts() == 0, job.output()
    whole = folder / "runs/pretrain"
    assert _steps(run) == _steps(whole) == list(range(1, STEPS + 1))
    expected, found = _weights(whole), _weights(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    with Job(cluster, folder, "finetune.sbatch", "--set", "train.max_steps=2") as job:
        assert job.wait() == {"COMPLETED"}, job.output()
    with Job(cluster, folder, "probe.sbatch", "--set", "train.max_steps=2", options=["--nodes=4"]) as job:
        assert job.wait() == {"COMPLETED"}, job.output()
    for name, stages in (
        ("preempted", ["pretrain"]),
        ("pretrain", ["pretrain"]),
        ("finetune", ["finetune", "evaluate"]),
        ("probe", ["probe"]),
    ):
        summary = _summary(folder / "runs" / name)
        assert (summary["world_size"], summary["ep_size"]) == (4, 4)
        assert [stage["name"] for stage in summary["stages"]] == stages
        logs = sorted((folder / "runs" / name / "logs").iterdir())
        assert [path.name for path in logs] == [f"{host}.log" for host in cluster.names]
        assert all(path.stat().st_size for path in logs)


def test_restarts_without_progress_end_the_job_with_a_clear_line(cluster, folder):
    """The container's command fails on every host, so no start comes to anything."""
    with Job(cluster, folder, "pretrain.sbatch", CONTAINER="false", MAX_RESTARTS="1") as job:
        assert job.wait() == {"FAILED"}, job.output()
        assert job.restarts() == 1
        (log,) = folder.glob("pretrain-*.log")
    lines = [line for line in log.read_text().splitlines() if "ends: " in line]
    assert len(lines) == 1 and "1 restarts brought no checkpoint after step 0 (MAX_RESTARTS=1)" in lines[0]


def test_bad_input_does_not_go_back_into_the_queue(cluster, folder):
    with Job(cluster, folder, "pretrain.sbatch", "--set", "stages.pretrain.epoch=3") as job:
        assert job.wait() == {"FAILED"} and job.restarts() == 0, job.output()
        assert "did you mean 'epochs'?" in (folder / "runs/pretrain/logs/node1.log").read_text()


def test_a_cancelled_job_stays_cancelled(cluster, folder):
    wait = "python -c __import__('time').sleep(120)"  # in place of training
    with Job(cluster, folder, "pretrain.sbatch", CONTAINER=wait) as job:
        job.wait_until(lambda: len(list(folder.glob("runs/pretrain/logs/*.log"))) == 4)
        cluster.slurm("scancel", job.number)
        job.wait_until(lambda: not job.is_queued())
        assert job.states() == {"CANCELLED"} and job.restarts() == 0, job.output()
        assert "exit code 143" in job.output()


def test_an_array_fills_one_table(cluster, folder):
    sweep = {
        "name": "tiny", "recipe": "digits", "seeds": [0, 1], "metrics": ["finetune.top1"],
        "set": {
            "stages.pretrain": None, "stages.evaluate": None, "stages.finetune.kind": "supervised",
            "train.max_steps": 1,
        },
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(sweep))
    cluster.slurm("sparse-mlp-ds", "shards", "make", "digits", "data/digits", cwd=folder, PYTHONPATH=str(REPOSITORY))
    with Job(cluster, folder, "sweep.sbatch", options=["--array=0-1"], SWEEP="tiny.yaml", OUT="runs/tiny") as job:
        assert job.wait() == {"COMPLETED"}, job.output()
    (row,) = json.loads((folder / "runs/tiny/table.json").read_text())["rows"]
    assert row["values"]["finetune.top1"].keys() == {"0", "1"}, job.output()
