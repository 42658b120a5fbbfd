"""A rank killed at any moment, inside saving too: the next start finds a whole checkpoint, and the end is the same."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest, tensor_file
from sparse_mlp_ds.checkpoints.saver import Saver
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.train import engine_state
from tests.helpers import harness, tiny

STEPS = 60
PHASES = ("mkdir", "half a block", "fsync", "half a manifest", "before the rename", "after the rename", "pruning")
ZERO_ONLY = PHASES[:1] + PHASES[3:]  # what rank 0 does for all


def _arm(phase: str | float, turn: int, died: Path) -> None:
    """Let this rank die at the `turn`-th time it comes to a phase of saving, or after so many seconds."""

    def die() -> None:
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if not isinstance(phase, str):
        threading.Timer(phase, die).start()
        return
    owner, name = {
        "mkdir": (Path, "mkdir"),
        "half a block": (tensor_file, "_write_all"),
        "fsync": (os, "fsync"),
        "half a manifest": (Path, "write_text"),
        "before the rename": (Path, "rename"),
        "after the rename": (Path, "rename"),
        "pruning": (shutil, "rmtree"),
    }[phase]
    real, count = getattr(owner, name), 0

    def deadly(*args, **kwargs):
        nonlocal count
        if phase == "pruning" and not list(args[0].glob("*.safetensors")):
            return real(*args, **kwargs)  # nothing there to remove
        count += 1
        if count < turn:
            return real(*args, **kwargs)
        match phase:
            case "half a block":
                args[0].write(args[1][: len(args[1]) // 2])
            case "half a manifest":
                real(args[0], args[1][: len(args[1]) // 2])
            case "after the rename":
                real(*args)
            case "pruning":
                next(args[0].glob("*.safetensors")).unlink()
        return die()

    setattr(owner, name, deadly)


def _train(folder: str, rank: int | None = None, phase: str | float = "", turn: int = 1) -> None:
    """Go on from the newest checkpoint to the last step, saving after each; `rank` dies on the way."""
    built = tiny.build_engine(2, 1)
    found, _ = manifest.newest(Path(folder))
    first = found.manifest["step"] if found else 0
    if found:
        tiny.restore(built, found.path)
    comm.barrier()  # what one rank found, another must not find removed
    saver = Saver(Path(folder), 2, None, print)
    if rank == process_group.rank():
        _arm(phase, turn, Path(f"{folder}.died"))
    for number in range(first, STEPS):
        tiny.step(built, number)
        saver.look()
        about = {"progress": {"stage_step": number + 1}, "recipe": {}}
        (saver.finish if number + 1 == STEPS else saver.start)(number + 1, engine_state.pieces(built, None), about)


def _kills(seconds: float) -> list[tuple[int, str | float, int]]:
    """Return (rank, where, which time): inside each phase of saving, and anywhere within so many seconds."""
    draw = random.Random(0)
    inside = [(0, phase, turn) for phase in PHASES for turn in (1, 2)]
    inside += [(1, phase, turn) for phase in PHASES if phase not in ZERO_ONLY for turn in (1, 2)]
    anywhere = [(draw.randrange(2), draw.uniform(0, seconds), 0) for _ in range(40 - len(inside))]
    kills = inside + anywhere
    draw.shuffle(kills)
    return kills


@pytest.mark.long
@pytest.mark.timeout(600)
def test_forty_kills_change_no_bit(tmp_path):
    started = time.monotonic()
    harness.run(2, _train, str(tmp_path / "whole"))
    took = time.monotonic() - started  # with the start of the ranks
    expected = tiny.tensors(tmp_path / f"whole/step_{STEPS}")
    folder, died = tmp_path / "killed", tmp_path / "killed.died"
    for rank, phase, turn in _kills(took / 8):
        while not died.exists():
            found, _ = manifest.newest(folder)
            if found and found.manifest["step"] > STEPS * 2 // 3:
                shutil.rmtree(folder)
            try:
                harness.run(2, _train, str(folder), rank, phase, turn)
            except AssertionError:
                if not died.exists():
                    raise
            if not isinstance(phase, str):  # if it was through before its time had come, it is to die sooner
                phase /= 2
        died.unlink()
    harness.run(2, _train, str(folder))
    found = tiny.tensors(folder / f"step_{STEPS}")
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
