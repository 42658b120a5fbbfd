"""What is recorded of a run's origin: the commit of its code, and environment.json with every start."""

import json
import shutil
import subprocess

import pytest

import sparse_mlp_ds
from sparse_mlp_ds.distributed import commit
from sparse_mlp_ds.distributed.discovery import Launch
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import environment_file
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.train.preflight import Facts
from sparse_mlp_ds.train.run_folder import RunFolder
from tests.helpers.launcher import MOE
from tests.helpers.made_checkpoints import call, finished, save

FACTS = [
    Facts(f"node{number // 2}", 2, None, "3.11.2", "torch 2.13.0+cu130, numpy 2.4.6", "a1", "b2", "c3", "H100", 2, 1e9)
    for number in range(4)
]


def _git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a git repository, taken for this one."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    folder = tmp_path / "checkout/package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(sparse_mlp_ds, "__file__", str(folder / "__init__.py"))
    _git(folder, "init", "-q")
    commit.of_code.cache_clear()
    yield folder
    commit.of_code.cache_clear()


def _of_code():
    commit.of_code.cache_clear()
    return commit.of_code()


def test_the_commit_and_whether_the_package_differs_from_it(package):
    assert _of_code() is None, "not committed, so of no commit"
    _git(package, "add", ".")
    _git(package, "commit", "-qm", "first")
    head = _git(package, "rev-parse", "HEAD").strip()
    (package.parent / "notes.txt").write_text("beside the package")
    assert _of_code() == commit.Commit(head, dirty=False)
    (package / "new.py").write_text("")
    assert _of_code() == commit.Commit(head, dirty=True)
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("changed = True")
    assert _of_code() == commit.Commit(head, dirty=True)


def test_without_git_there_is_no_commit(package, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert _of_code() is None


@pytest.fixture
def folder(tmp_path):
    digits.make(tmp_path / "digits")
    overrides = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    return RunFolder(resolve("digits", MOE, overrides, str(tmp_path / "run"), "auto", world=1))


def _starts(folder):
    return json.loads((folder.path / "environment.json").read_text())


def test_every_start_appends_what_it_ran_on(folder):
    launch = Launch("torchrun", 0, 4, 0, 2, "RANK=0")
    environment_file.add_start(folder, launch, FACTS)
    folder.progress.step = 7
    environment_file.add_start(folder, launch, FACTS[:2])
    first, second = _starts(folder)
    assert first["packages"] == {"torch": "2.13.0+cu130", "numpy": "2.4.6"} and first["launcher"] == "torchrun"
    assert [(host["host"], host["ranks"], host["device"]) for host in first["hosts"]] == [
        ("node0", [0, 1], "H100"),
        ("node1", [2, 3], "H100"),
    ]
    assert (first["step"], second["step"]) == (0, 7) and len(second["hosts"]) == 1
    assert first["data"] == folder.job.data_fingerprint and first["topology"]["precision"] == "float32"
    assert first["command"][0].endswith(("python", "python3")) or "python" in first["command"][0]
    assert set(first["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}


def test_a_damaged_file_is_kept_and_a_new_one_begins(folder, capsys):
    (folder.path / "environment.json").write_text('{"not": "a list"')
    environment_file.add_start(folder, Launch("python", 0, 1, 0, 1, "nothing"), FACTS[:1])
    assert len(_starts(folder)) == 1 and (folder.path / "environment.json.damaged").read_text().startswith('{"not"')
    assert "environment.json: damaged" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_costs_a_warning(folder, capsys):
    (folder.path / "environment.json").mkdir()
    environment_file.add_start(folder, Launch("python", 0, 1, 0, 1, "nothing"), FACTS[:1])
    assert "this start is not recorded" in capsys.readouterr().out


def test_an_export_and_its_card_name_commit_and_data(tmp_path, capsys):
    code, data = {"commit": "c" * 40, "dirty": True}, "d" * 64
    path = save(tmp_path, progress=finished(data=data), code=code)
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    origin = json.loads((tmp_path / "out/config.json").read_text())["origin"]
    assert origin.items() >= (code | {"data": data}).items()
    card = (tmp_path / "out/README.md").read_text()
    assert f"commit `{'c' * 40}`, with changes that are not committed" in card and f"`{data}`" in card


def test_a_checkpoint_that_names_no_commit_is_exported_too(tmp_path, capsys):
    for number, about in enumerate(({}, {"code": None})):
        path = save(tmp_path / str(number), **about)
        assert call(capsys, "export", path, tmp_path / f"out{number}")[0] == 0
        assert "commit" not in (tmp_path / f"out{number}/README.md").read_text()
