"""What a run removes by itself after a save: nothing that is protected, and nothing but checkpoints and leftovers."""

from pathlib import Path

from sparse_mlp_ds.checkpoints import retention
from sparse_mlp_ds.checkpoints.manifest import MANIFEST


def checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"step_{step}").mkdir(parents=True)
        (folder / f"step_{step}" / MANIFEST).write_text("{}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_the_protected_and_the_multiples_stay(tmp_path):
    checkpoints(tmp_path, 5, 10, 15, 20, 25, 100)
    retention.prune(tmp_path / "step_100", keep=2, protected=[5], keep_every=10)
    assert names(tmp_path) == ["step_10", "step_100", "step_20", "step_25", "step_5"]
    retention.prune(tmp_path / "step_100", keep=1, protected=[5])
    assert names(tmp_path) == ["step_100", "step_5"]


def test_leftovers_go_and_other_files_stay(tmp_path):
    checkpoints(tmp_path, 1, 2)
    (tmp_path / ".step_3.partial").mkdir()
    (tmp_path / "step_0").mkdir()  # no manifest: not a checkpoint, and nobody knows what it is
    (tmp_path / "notes").write_text("mine")
    retention.prune(tmp_path / "step_2", keep=1, protected=[])
    assert names(tmp_path) == ["notes", "step_0", "step_2"]


def test_what_cannot_be_removed_stays(tmp_path, monkeypatch):
    checkpoints(tmp_path, 1, 2)

    def fail(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(retention, "remove", fail)
    retention.prune(tmp_path / "step_2", keep=1, protected=[])
    assert names(tmp_path) == ["step_1", "step_2"]
