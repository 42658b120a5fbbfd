"""The model that comes with the package: found by its name, small, and good on real images of CIFAR-10's test set."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.hub import SparseVisionModel, shipped

IMAGES = Path(__file__).parents[1] / "data/cifar10_test_images.tar.gz"
"""The first five test images of each class, as CLASS/NUMBER.jpg."""


def test_it_is_small_and_says_what_it_is():
    assert shipped.names() == ["cifar10"] and shipped.folder("cifar100") is None
    files = list(shipped.FOLDER.rglob("*"))
    assert sum(path.stat().st_size for path in files) < 3e6
    assert "0.7306" in (shipped.folder("cifar10") / "README.md").read_text()


def test_it_is_right_as_often_as_its_card_says():
    model, right = SparseVisionModel.from_pretrained("cifar10"), []
    with tarfile.open(IMAGES) as tar:
        for member in tar:
            image = Image.open(io.BytesIO(tar.extractfile(member).read()))
            with torch.no_grad():
                right.append(int(model(model.preprocess([image])).argmax()) == int(member.name.split("/")[0]))
    # Two standard errors of 50 images around the 73 % of its card, and a little more.
    assert len(right) == 50 and 0.58 < sum(right) / 50 < 0.88


def test_the_command_line_knows_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(IMAGES) as tar:
        Path("ship.jpg").write_bytes(tar.extractfile(next(m for m in tar if m.name.startswith("8/"))).read())
    main.main(["predict", "cifar10", "ship.jpg"])
    assert "ship" in capsys.readouterr().out


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main.main(["predict", "cifar10", "ship.jpg"])
    assert "cifar10" in capsys.readouterr().err
