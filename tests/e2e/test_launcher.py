"""The main job under the real launcher: pretrain, fine-tune, evaluate; killed on the way, it ends the same."""

import json
import signal
from pathlib import Path

import psutil
import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.distributed import processes
from tests.helpers import records
from tests.helpers.launcher import MOE, Launch

SHORT = ("--ds_config", MOE, "--set", "train.max_steps=12", "--set", "checkpoint.every_steps=3",
         "--set", "log.every_steps=1", "--set", "stages.pretrain.batch_size=64")  # fmt: skip

pytestmark = pytest.mark.timeout(900)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    found, passed_over = manifest.newest(run / "checkpoints")
    assert found and not passed_over
    read = Reader(found)
    return {name: read(name, 0, torch.Size(shape).numel()) for name, shape in read.shapes.items()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    shared_memory = set(Path("/dev/shm").glob("deepspeed*"))
    with Launch(folder, *SHORT) as launch:
        assert launch.wait() == 0, launch.output()
    assert set(Path("/dev/shm").glob("deepspeed*")) == shared_memory, "the run left shared memory behind"
    return folder / "runs/digits", launch.output()


def test_a_run_leaves_what_the_contract_says(uninterrupted):
    run, output = uninterrupted
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["recipe"], summary["world_size"], summary["ep_size"], summary["zero_stage"]) == ("digits", 2, 2, 2)
    assert [(s["name"], s["kind"], s["steps"]) for s in summary["stages"]] == [
        ("pretrain", "pretrain", 12), ("finetune", "finetune", 12), ("evaluate", "evaluate", 0),
    ]  # fmt: skip
    assert {"knn_top1", "knn_top1_untrained"} <= summary["stages"][0]["metrics"].keys()
    assert summary["stages"][1]["metrics"] == summary["stages"][2]["metrics"]
    steps, results = records.of_steps(run), records.of_results(run)
    assert [r["step"] for r in steps] == list(range(1, 25))
    wanted = {"stage", "epoch", "loss", "lr", "images_per_second", "grad_norm", "eta_seconds", "data_wait"}
    assert all(wanted <= r.keys() for r in steps)
    assert all(f"moe/3.moe_s/{name}" in steps[0] for name in ("load_cv", "dropped", "dead", "entropy"))
    assert [(r["stage"], r["step"]) for r in results] == [("pretrain", 12), ("finetune", 24), ("evaluate", 24)]
    assert (run / "config.yaml").exists() and (run / "ds_config.json").exists()
    assert list((run / "tensorboard").glob("events*"))
    assert "pretrain 12/12 " in output and "eta" in output


@pytest.mark.long
def test_killed_in_both_stages_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    run = tmp_path / "runs/digits"
    # In pretraining after a checkpoint, in fine-tuning after one, and in fine-tuning before its first.
    for name in ("step_6", "step_12", "step_18"):
        with Launch(tmp_path, *SHORT) as launch:
            launch.wait_until(lambda n=name: (run / "checkpoints" / n / manifest.MANIFEST).exists())
            launch.kill()
    with Launch(tmp_path, *SHORT) as launch:
        assert launch.wait() == 0, launch.output()
        assert "resuming from" in launch.output()
    expected, found = _weights(uninterrupted[0]), _weights(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [record["step"] for record in records.of_steps(run)] == list(range(1, 25))
    assert [record["stage"] for record in records.of_results(run)] == ["pretrain", "finetune", "evaluate"]
    before, after = (json.loads((r / "summary.json").read_text()) for r in (uninterrupted[0], run))
    assert [s["metrics"] for s in before["stages"]] == [s["metrics"] for s in after["stages"]]


def _ranks(launch: Launch) -> dict[int, psutil.Process]:
    """The processes that train, by rank; their loaders have the same environment and are their children."""
    found = {}
    for process in psutil.Process(launch.process.pid).children(recursive=True):
        rank = processes.variables(process).get("RANK")
        if rank and "train.py" in " ".join(processes.command(process)):
            found.setdefault(int(rank), process)
    return found


@pytest.mark.long
def test_stopped_on_request_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    run = tmp_path / "runs/digits"
    steps = lambda: [record["step"] for record in records.of_steps(run)]  # noqa: E731
    for step, ask in ((2, "SIGUSR1"), (7, "SIGTERM"), (14, "stop")):
        with Launch(tmp_path, *SHORT) as launch:
            launch.wait_until(lambda n=step: n in steps())
            if ask == "stop":
                (run / "stop").touch()
            else:
                rank = _ranks(launch)[1]  # one rank alone; its loaders hear it too, as from a launcher
                for process in (*rank.children(), rank):
                    process.send_signal(getattr(signal, ask))
            assert launch.wait() == 85, launch.output()
            assert "stopped after step" in launch.output() and "start again" in launch.output()
            assert "Traceback" not in launch.output()
        newest, passed_over = manifest.newest(run / "checkpoints")
        assert newest.manifest["step"] == steps()[-1] >= step and not passed_over
        assert not (run / "stop").exists()
    with Launch(tmp_path, *SHORT) as launch:
        assert launch.wait() == 0, launch.output()
    expected, found = _weights(uninterrupted[0]), _weights(run)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert steps() == list(range(1, 25))


@pytest.mark.long
def test_four_ranks_need_no_other_argument(tmp_path):
    with Launch(tmp_path, "--ds_config", MOE, "--set", "train.max_steps=2", ranks=4) as launch:
        assert launch.wait() == 0, launch.output()
    summary = json.loads((tmp_path / "runs/digits/summary.json").read_text())
    assert (summary["world_size"], summary["ep_size"]) == (4, 4)


def test_bad_input_ends_the_launch_with_code_2_and_one_line(tmp_path):
    with Launch(tmp_path, "--ds_config", MOE, "--set", "stages.pretrain.epoch=3") as launch:
        assert launch.wait() == 2, launch.output()
        errors = [line for line in launch.output().splitlines() if line.startswith("error:")]
    assert errors == ["error: --set stages.pretrain.epoch: unknown key in stages.pretrain; did you mean 'epochs'?"]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()
