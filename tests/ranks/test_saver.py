"""Saving beside training: a disk that takes nothing costs a warning, never the run or an older checkpoint."""

import subprocess
import threading
from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest, tensor_file
from sparse_mlp_ds.checkpoints.saver import Saver
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import RunError
from sparse_mlp_ds.train import engine_state
from tests.helpers import harness, tiny


def _can_mount(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], stderr=-3).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    if not _can_mount(folder):
        pytest.skip("needs root: mounts a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _save(saver, built, step: int, must: bool = False) -> None:
    tiny.step(built, step)
    about = {"progress": {"stage_step": step}, "recipe": {}}
    (saver.finish if must else saver.start)(step, engine_state.pieces(built, None), about)
    saver.look(wait=True)


def _on_rank_zero(action) -> None:
    if process_group.rank() == 0:
        action()
    comm.barrier()


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def _through_trouble(disk: str):
    """Save before, in and after trouble; returns what was found after each save, the last failure, what was said."""
    disk, found, said = Path(disk), [], []
    built, saver = tiny.build_engine(2, 1), Saver(disk / "checkpoints", 1, None, said.append)
    remount = lambda how: subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)  # noqa: E731
    trouble = [
        None,
        lambda: _fill(disk),
        (disk / "filler").unlink,
        lambda: remount("ro"),
        lambda: remount("rw"),
    ]
    for step, change in enumerate(trouble, start=1):
        if change:
            _on_rank_zero(change)
        _save(saver, built, step)
        newest, passed_over = manifest.newest(disk / "checkpoints")
        found.append((newest.manifest["step"], saver.newest.manifest["step"], passed_over))
        comm.barrier()
    _on_rank_zero(lambda: _fill(disk))
    try:
        _save(saver, built, 6, must=True)
    except RunError as error:
        return found, str(error), said
    return found, None, said


def test_a_full_and_a_read_only_disk_are_survived(disk):
    results = harness.run(2, _through_trouble, str(disk))
    for found, *_ in results:
        assert found == [(1, 1, []), (1, 1, []), (3, 3, []), (3, 3, []), (5, 5, [])]
    assert "No space left on device (rank" in results[0][1] and "start again with the same command" in results[0][1]
    assert results[1][1] == "", "one rank speaks for all"
    assert list((disk / "checkpoints").glob(".step_*")) == [], "half-written leftovers"
    said = results[0][2]
    assert len(said) == 2 + 3 and results[1][2] == [], "rank 0 speaks for all"
    assert all(
        f"WARNING: no checkpoint of step {step}" in text for step, text in zip((2, 4, 6, 6, 6), said, strict=True)
    )
    assert "No space left" in said[0] and "Read-only file system" in said[1]


def _while_training(folder: str):
    """Take steps while a disk that hangs takes a checkpoint; returns what its past was, and what became of it."""
    real, go_on, writing, most = tensor_file.write, threading.Event(), [], []

    def hanging(*args):
        writing.append(1)
        most.append(len(writing))
        assert go_on.wait(60), "training waits for the disk"
        result = real(*args)
        writing.pop()
        return result

    tensor_file.write = hanging
    built, saver = tiny.build_engine(2, 2), Saver(Path(folder), 3, None, print)
    tiny.step(built, 0)
    about = {"progress": {"stage_step": 1}, "recipe": {}}
    saver.start(1, engine_state.pieces(built, None), about)
    about["progress"]["stage_step"] = 99
    before = tiny.gather({"param/" + name: value for name, value in built.module.named_parameters()})
    for number in range(1, 4):
        tiny.step(built, number)
        assert not saver.look() and not (Path(folder) / "step_1").exists()
    go_on.set()
    saver.start(2, engine_state.pieces(built, None), about)
    saver.start(3, engine_state.pieces(built, None), about)
    saver.look(wait=True)
    tensor_file.write = real
    return max(most), before


def test_training_goes_on_while_a_checkpoint_of_its_past_is_written(tmp_path):
    (most, before), _ = harness.run(2, _while_training, str(tmp_path))
    assert most == 1, "two were written at once"
    found = tiny.tensors(tmp_path / "step_1")
    assert [name for name, value in before.items() if not torch.equal(found[name], value)] == []
    assert manifest.read_manifest(tmp_path / "step_1")["progress"] == {"stage_step": 1}
    assert manifest.newest(tmp_path)[0].manifest["step"] == 3
