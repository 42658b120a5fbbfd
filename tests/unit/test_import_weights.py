"""`sparse-mlp-ds import`: published Mixers and own files, in the form of an export."""

import json

import pytest
import torch

from sparse_mlp_ds.hub import SparseVisionModel
from tests.helpers.launcher import REPOSITORY
from tests.helpers.made_checkpoints import call
from tests.helpers.weight_files import DENSE, logits, make, weights, write

SHAPE = [f"--set=model.{key}={getattr(DENSE, key)}" for key in ("width", "token_hidden", "channel_hidden")]
SHAPE += ["--set=model.dense_blocks=3"]


@pytest.mark.parametrize("layout", ["timm", "google", "own"])
def test_every_layout_answers_as_it_did(tmp_path, capsys, layout):
    model, out = make(DENSE), tmp_path / "out"
    file = write(tmp_path, layout, weights(model))
    code, said, errors = call(capsys, "import", file, out, "--model", "mixer_digits", *SHAPE)
    assert (code, errors) == (0, []) and "5 classes" in said
    with torch.no_grad():
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        assert torch.equal(SparseVisionModel.from_pretrained(out)(images), logits(model))
    config = json.loads((out / "config.json").read_text())
    published = {"crop_fraction": 0.875, "mean": [0.5] * 3, "std": [0.5] * 3}
    imagenet = {"crop_fraction": 1.0, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert config["data"] == (imagenet if layout == "own" else published)
    assert config["origin"]["file"] == file.name and config["classes"] == list("01234")
    assert f"Read from `{file.name}`" in (out / "README.md").read_text()


def test_names_pixels_and_resolution_are_the_users(tmp_path, capsys):
    file, names = write(tmp_path, "timm", weights(make(DENSE))), tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    sets = ["--set=data.mean=[0, 0, 0]", "--set=model.image_size=24", "--classes", names, "--resize", "bicubic"]
    code, said, _ = call(capsys, "import", file, tmp_path / "out", "--model", "mixer_digits", *SHAPE, *sets)
    assert code == 0 and "resized" in said
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    assert read.classes == ("ant", "bee", "cat", "dog", "elk")
    assert read.config.data.mean == (0, 0, 0) and read.config.spec.image_size == 24


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "mixer_digit", *SHAPE], ["unknown model 'mixer_digit'", "mixer_digits"]),
        (["--model", "mixer_digits"], ["'stem.proj.weight' is of shape [12, 3, 4, 4]", "set model.width"]),
        (["--model", "mixer_digits", *SHAPE, "--set=model.depht=3"], ["depht"]),
        (["--model", "mixer_digits", *SHAPE, "--set=data.std=[0, 1, 1]"], ["std"]),
        (["--model", "mixer_digits", *SHAPE, "--set=train.seed=1"], ["train", "model.KEY"]),
        (["--model", "mixer_digits", *SHAPE, "--set=model=3"], ["--set model"]),
        (["--model", "mixer_digits", *SHAPE, "--resize", "bilinea"], ["--resize bilinea", "'bilinear'"]),
        (["--model", "mixer_digits", *SHAPE, "--classes", str(REPOSITORY / ".gitignore")], ["names for the 5 outputs"]),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(tmp_path, capsys, arguments, parts):
    file = write(tmp_path, "timm", weights(make(DENSE)))
    code, _, (line,) = call(capsys, "import", file, tmp_path / "out", *arguments)
    assert code == 2 and all(part in line for part in parts), line
    assert not (tmp_path / "out").exists()
