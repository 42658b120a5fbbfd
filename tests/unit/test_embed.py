"""`sparse-mlp-ds embed`: one row of features for each image, whatever the images lie in."""

import json

import numpy as np
import pytest
import torch

from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.shards.scan import make_index
from tests.helpers.made_checkpoints import call, save
from tests.helpers.tars import write_tar
from tests.unit.test_cli_predict import encoded


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


def features(model, contents):
    network = SparseVisionModel.from_pretrained(model)
    with torch.no_grad():
        return network.forward_features(network.preprocess(contents))


def photos(folder):
    """Images at several depths, in the order of their paths, and a file that is none."""
    paths = [folder / name for name in ("a/deep/2.png", "a/1.jpg", "b.png")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number, "jpeg" if path.suffix == ".jpg" else "png"))
    (folder / "notes.txt").write_text("none")
    return sorted(paths)


def tar(path, numbers, labelled=False):
    members = []
    for number in numbers:
        members += [(f"{number:03d}.png", encoded(number))] + [(f"{number:03d}.cls", b"0")] * labelled
    write_tar(path, *members)
    return path


def written(out):
    return np.load(out, allow_pickle=False), json.loads(out.with_suffix(".names.json").read_text())


def test_a_folder_of_any_depth(tmp_path, capsys, model):
    paths, out = photos(tmp_path / "photos"), tmp_path / "new/features.npy"
    arguments = ("embed", model, tmp_path / "photos", "--out", out, "--workers=0", "--batch-size=2")
    code, said, errors = call(capsys, *arguments)
    assert code == 0 and said == f"{out}: 3 images, 12 features of each\n"
    assert len(errors) == 1 and "notes.txt" in errors[0]
    found, names = written(out)
    assert names == [str(path) for path in paths]
    assert found.dtype == np.float32 and found.shape == (3, 12)
    torch.testing.assert_close(torch.from_numpy(found), features(model, paths), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in out.parent.iterdir()) == ["features.names.json", "features.npy"]


def test_tars_data_sets_and_files_in_the_order_given(tmp_path, capsys, model):
    labelled = tar(tmp_path / "set/some-000000.tar", (5, 6), labelled=True).parent
    make_index(labelled, ["ant"])
    single, plain = tar(tmp_path / "one.tar", (7,)), tar(tmp_path / "tars/x.tar", (8, 9)).parent
    (tmp_path / "z.png").write_bytes(encoded(0))
    inputs = (tmp_path / "z.png", plain, labelled, single)
    code, _, errors = call(capsys, "embed", model, *inputs, "--out", tmp_path / "f.npy", "--workers=0")
    assert (code, errors) == (0, [])
    found, names = written(tmp_path / "f.npy")
    keys = [(plain / "x.tar", 8), (plain / "x.tar", 9), *((labelled / "some-000000.tar", n) for n in (5, 6))]
    assert names == [str(tmp_path / "z.png"), *(f"{path}:{n:03d}" for path, n in [*keys, (single, 7)])]
    expected = features(model, [encoded(number) for number in (0, 8, 9, 5, 6, 7)])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)


def test_an_image_that_cannot_be_read_has_no_row(tmp_path, capsys, model):
    paths, out = photos(tmp_path / "photos"), tmp_path / "f.npy"
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    code, _, errors = call(capsys, "embed", model, *paths, "--out", out, "--workers=0")
    assert code == 2
    assert "decoded" in errors[0] and paths[1].stem in errors[0]
    assert errors[1] == f"error: 1 of 3 images, named above, cannot be read and have no row in {out}"
    found, names = written(out)
    assert names == [str(paths[0]), str(paths[2])]
    torch.testing.assert_close(torch.from_numpy(found), features(model, [paths[0], paths[2]]), rtol=1e-5, atol=1e-6)


def test_what_fails_leaves_the_earlier_files(tmp_path, capsys, model, monkeypatch):
    paths, out = photos(tmp_path / "photos"), tmp_path / "f.npy"
    assert call(capsys, "embed", model, *paths, "--out", out, "--workers=0")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("f.*")}

    def full_disk(file, array):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    code, _, (line,) = call(capsys, "embed", model, paths[0], "--out", out, "--workers=0")
    assert (code, line) == (2, f"error: {out}: No space left on device")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("f.*")} == before
    assert not list(tmp_path.glob(".f.*"))


@pytest.mark.parametrize(
    ("images", "flags", "part"),
    [
        (["missing.png"], [], "missing.png: No such file or directory; give an image, a tar or a folder"),
        (["empty"], [], "empty: no images here or below"),
        (["a.png"], ["--out", "f.txt"], "--out f.txt: give the name of a file that ends in .npy"),
        (["a.png"], ["--batch-size=0"], "embed: --batch-size is at least 1"),
        (["a.png"], ["--workers=-1"], "--workers at least 0"),
    ],
)
def test_bad_input_in_one_line(tmp_path, capsys, model, monkeypatch, images, flags, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(0))
    code, _, (line,) = call(capsys, "embed", model, *images, "--out=f.npy", *flags)
    assert code == 2 and part in line and not (tmp_path / "f.npy").exists()
