"""What is no file of weights, or a harmful one, is refused in one line."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.weights import formats, layouts
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.weight_files import DENSE, make, refused, weights, write


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".PTH", ".ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    torch.save(weights(make(DENSE)), path)
    refused("pickles", "weights_only=True", "save_file", call=lambda: formats.read(path), path=path)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_a_pickle_inside_an_npz_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **{"stem/kernel": np.array([Harmful()], dtype=object)})
    refused("cannot be read as npz", "allow_pickle=False", call=lambda: formats.read("a.npz"), path="a.npz")
    for name in ("b.npz", "b.safetensors"):
        np.save("b.npy", np.array([Harmful()], dtype=object))
        os.replace("b.npy", name)
        refused("cannot be read", call=lambda: formats.read(name), path=name)  # noqa: B023 - called at once
    assert not Path("opened").exists()


def test_what_is_not_a_file_of_weights_is_refused(tmp_path):
    good = write(tmp_path, "own", weights(make(DENSE)))
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "half.safetensors").write_bytes(good.read_bytes()[:-100])
    np.savez(tmp_path / "whole.npz", x=np.ones(3))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    os.symlink(tmp_path / "nowhere", tmp_path / "link.npz")
    for name, part in {
        "absent.npz": "no such file",
        "link.npz": "no such file",
        "folder.npz": "a folder",
        "empty.safetensors": "cannot be read",
        "half.safetensors": "cannot be read",
        "half.npz": "cannot be read",
        "weights.h5": "not a weights file",
        "noending": "not a weights file",
        "x" * 300 + ".npz": "cannot be read",
    }.items():
        refused(part, call=lambda: formats.read(tmp_path / name), path=tmp_path)  # noqa: B023 - called at once


@pytest.mark.parametrize(
    "name", ["../../stem.proj.weight", "/stem/kernel", "stem//x", "a\\b", "a\x1b[31mb", "a b", "a\n"]
)
def test_tensor_names_that_could_be_paths_or_escapes_are_refused(tmp_path, name):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(2)}, path)
    refused("is no tensor name", call=lambda: formats.read(path), path=path)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", array_file(np.ones(2)))
    refused("is no tensor name", call=lambda: formats.read(path), path=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.safetensors"]


def array_file(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"stem/bias": np.array([1.0, np.nan])}, "'stem/bias' holds NaN or infinity"),
        ({"stem/bias": np.array([1e300])}, "'stem/bias' holds NaN or infinity"),
        ({"stem/bias": np.ones((0, 3))}, "'stem/bias' is empty"),
        ({"stem/bias": np.ones(3, int)}, "'stem/bias' is of type int64"),
        ({"bias@0": np.ones(3)}, "--resume"),
        ({"stem/bias": np.ones(3), "stem/bias.npy": np.ones(3)}, "two arrays have the same name"),
    ],
)
def test_values_that_are_no_weights_are_refused(tmp_path, arrays, part):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(name if name.endswith(".npy") else f"{name}.npy", array_file(array))
    refused(part, call=lambda: formats.read(path), path=path)


def test_an_npz_that_claims_to_be_huge_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 1 << 10)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(4096))
    refused("unpacks to more", call=lambda: formats.read(path), path=path)


def test_tensors_of_an_unknown_layout_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"conv1.weight": torch.ones(2)}, path)
    refused("'conv1.weight'", "stem.proj.weight", call=lambda: load_into(make(DENSE), DENSE, path), path=path)
    assert layouts.to_own_names(
        {"stem/bias": torch.ones(1), "MixerBlock_0/head/bias": torch.ones(1)}, path
    ).unknown == ("MixerBlock_0/head/bias",)
