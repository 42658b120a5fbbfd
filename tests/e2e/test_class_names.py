"""The names of a trained model's classes, from the training images' index to the export."""

import json

import pytest

from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.launcher import Launch
from tests.helpers.made_checkpoints import call
from tests.helpers.tars import sample, write_tar

NAMES = ["ant", "bee", "cat"]


@pytest.mark.timeout(400)
def test_names_are_the_training_images_and_are_held_against_the_next_ones(tmp_path, capsys):
    """The held-out tars have no names; they are named in another order when training is over."""
    for part in ("train", "val"):
        write_tar(tmp_path / part / "a.tar", *(member for n in range(9) for member in sample(f"{n}", n % 3)))
        make_index(tmp_path / part, NAMES if part == "train" else None)
    optimizer = {"name": "adamw", "base_lr": 0.001}
    train = {"kind": "supervised", "epochs": 1, "batch_size": 8, "optimizer": optimizer, "view": {}}
    recipe = {
        "name": "tiny",
        "data": {"train": "train", "val": "val", "classes": 3, "workers": 0},
        "model": {"name": "sparse_mlp_digits"},
        "stages": {"train": train, "test": {"kind": "evaluate"}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arguments = ("--ds_config", "moe", "--recipe", "recipe.yaml", "--out", "run")
    with Launch(tmp_path, *arguments, ranks=1) as launch:
        assert launch.wait() == 0, launch.output()
        assert "WARNING: data.val val: has no name for class 0, which is 'ant' in data.train train" in launch.output()
    run = tmp_path / "run"
    (manifest,) = run.glob("checkpoints/*/manifest.json")
    assert json.loads(manifest.read_text())["classes"] == NAMES
    assert json.loads((run / "test.json").read_text())["classes"] == NAMES
    assert call(capsys, "export", run, tmp_path / "out")[0] == 0
    assert SparseVisionModel.from_pretrained(tmp_path / "out").classes == tuple(NAMES)

    for part in ("train", "val"):
        make_index(tmp_path / part, ["bee", "ant", "cat"])
    with Launch(tmp_path, *arguments, ranks=1) as launch:
        assert launch.wait() == 2, launch.output()
        (line,) = [line for line in launch.output().splitlines() if line.startswith("error:")]
    assert "data.train: class 0 is 'bee', but 'ant' in run/checkpoints/step_1" in line
