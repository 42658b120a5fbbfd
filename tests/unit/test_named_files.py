"""Recipes, sweeps and DeepSpeed JSON are all found the same way: by a shipped name, or by a path."""

import pytest

from sparse_mlp_ds.config.deepspeed_json import DS_CONFIGS
from sparse_mlp_ds.config.loading import RECIPES
from sparse_mlp_ds.sweep.plan import SWEEPS
from tests.helpers.tars import refusal

KINDS = pytest.mark.parametrize("kind", [RECIPES, SWEEPS, DS_CONFIGS], ids=lambda kind: kind.kind)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@KINDS
def test_every_shipped_file_has_a_name(kind):
    assert kind.names() == sorted(kind.names()) and len(kind.names()) > 2
    for name in kind.names():
        assert kind.path(name, "here").is_file()


@KINDS
def test_a_wrong_name_is_answered_with_the_nearest(kind):
    name = kind.names()[0]
    assert refusal(kind.path, f"{name}x", "--here") == f"--here {name}x: no such {kind.kind}; did you mean '{name}'?"


@KINDS
def test_a_folder_is_named_as_such_unless_a_shipped_file_has_its_name(kind, tmp_path):
    name = kind.names()[0]
    for folder in ("runs", name):
        (tmp_path / folder).mkdir()
    expected = f"is a folder, not a {kind.kind}; give the name of a shipped one, or a {kind.suffix} file"
    for given in ("runs", "runs/", str(tmp_path / "runs"), f"./{name}"):
        assert refusal(kind.path, given, "--here") == f"--here {given}: {expected}"
    assert kind.path(name, "--here") == kind.folder / f"{name}{kind.suffix}"


@pytest.mark.parametrize("kind, kept", [(RECIPES, "config.yaml"), (DS_CONFIGS, "ds_config.json")])
def test_of_a_run_folder_the_file_in_it_is_named(kind, kept, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / kept).write_text("")
    assert refusal(kind.path, "run", "--here") == f"--here run: is a folder, not a {kind.kind}; give run/{kept}"


@KINDS
@pytest.mark.parametrize("given", ["mine.yaml", "mine.txt", "sub/mine", "./mine"])
def test_a_path_is_one_whether_or_not_a_file_is_there(kind, given, tmp_path):
    assert kind.path(given, "--here", tmp_path) == tmp_path / given
    assert kind.path(str(tmp_path / given), "--here", tmp_path / "other") == tmp_path / given


@KINDS
def test_a_file_of_the_very_name_comes_before_the_shipped_one(kind, tmp_path):
    name = kind.names()[0]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_text("")
    assert kind.path(name, "--here", tmp_path / "sub") == tmp_path / "sub" / name
    assert kind.path(name, "--here") == kind.folder / f"{name}{kind.suffix}", "it lies in a different folder"
