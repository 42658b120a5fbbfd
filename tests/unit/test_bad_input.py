"""Bad input ends train.py with code 2 and one line naming the file, the key and the fix, before any process group."""

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed

import train
from sparse_mlp_ds.data import digits

REPOSITORY = Path(train.__file__).parent
MOE = str(REPOSITORY / "ds_configs/moe.json")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths of the recipe lead into an empty folder."""
    monkeypatch.chdir(tmp_path)


def _refused(capsys, *arguments: str) -> str:
    assert train.main(list(arguments)) == 2
    assert not torch.distributed.is_initialized()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert not Path("runs").exists(), "something was written"
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--ds_config", "missing", "ds_configs/moe.json"]),
        (["--ds_config", "nowhere.json"], ["nowhere.json", "No such file"]),
        (["--ds_config", MOE, "--recipe", "digitz"], ["--recipe digitz", "did you mean 'digits'"]),
        (["--ds_config", MOE, "--recipe", "mine.yaml"], ["mine.yaml", "No such file"]),
        (["--ds_config", MOE, "--set", "train.sed=1"], ["train.sed", "did you mean 'seed'"]),
        (["--ds_config", MOE, "--set", "moe.ep_size=3"], ["moe.ep_size 3", "4 experts", "moe_s", "set 1, or auto"]),
        (["--ds_config", MOE, "--set", "moe.ep_size=2"], ["moe.ep_size 2", "1 ranks", "set 1, or auto"]),
        (
            ["--ds_config", MOE, "--set", "moe.group_images=7"],
            ["batch_size 128", "7 images", "moe.group_images", "nearest that does is 126"],
        ),
        (["--ds_config", MOE, "--set", "stages.pretrain.batch_size=1600"], ["batch_size 1600", "1437 images"]),
        (["--ds_config", MOE, "--set", "data.train=empty"], ["empty: no shards", "sparse-mlp-ds shards make"]),
        (
            ["--ds_config", MOE, "--set", "data.classes=7"],
            ["outside the 7 classes", "worst is", "data.bad_limit"],
        ),
        (["--ds_config", MOE, "--resume", "gone/step_5"], ["gone/step_5", "not a checkpoint"]),
    ],
)
def test_refusal(capsys, arguments, parts):
    line = _refused(capsys, *arguments)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("ds_config", "parts"),
    [
        (
            {"gradient_clipping": 1.0, "zero_optimization": {"stage": 3}},
            ["zero_optimization.stage", "experts", "set 2"],
        ),
        ({"gradient_clipping": 1.0, "train_batch_size": 100}, ["digits.yaml", "bad.json", "conflicts", "remove"]),
        ({"gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": 48}, ["batch_size 128", "48", "nearest", "144"]),
        ({"gradient_cliping": 1.0, "gradient_clipping": 1.0}, ["gradient_cliping", "did you mean 'gradient_clipping'"]),
    ],
)
def test_refusal_of_a_ds_config(capsys, ds_config, parts):
    Path("bad.json").write_text(json.dumps(ds_config))
    line = _refused(capsys, "--ds_config", "bad.json")
    assert all(part in line for part in parts), line


def test_another_run_in_the_folder_is_not_continued(capsys):
    digits.make(Path("data/digits"))
    assert train.main(["--ds_config", MOE, "--check"]) == 0
    plan = capsys.readouterr().out
    assert "128 images = 128 x 1 accumulated x 1 ranks" in plan and "memory per rank" in plan
    assert not Path("runs").exists(), "--check wrote something"

    other = Path("other")
    (other / "checkpoints/step_3").mkdir(parents=True)
    shutil.copy(REPOSITORY / "sparse_mlp_ds/recipes/digits.yaml", other / "config.yaml")
    line = _refused(capsys, "--ds_config", MOE, "--out", "other", "--set", "train.seed=5")
    assert "other/config.yaml" in line and "--resume never" in line
