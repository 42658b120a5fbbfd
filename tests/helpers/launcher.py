"""Starting the real `deepspeed` launcher, and killing everything it started."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

REPOSITORY = Path(__file__).parents[2]
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
MOE = str(REPOSITORY / "ds_configs/moe.json")
LIMIT = ("--set", "train.timeout_seconds=90")
"""Makes a run that hangs say where, before `Launch.wait` or `wait_until` gives it up."""


def small_recipe(folder: Path, epochs: int = 1) -> str:
    """Write a recipe of one short stage, for tests of what surrounds training; return its path."""
    recipe = yaml.safe_load((REPOSITORY / "sparse_mlp_ds/recipes/digits.yaml").read_text())
    optimizer = {"name": "adamw", "base_lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 0}
    stage = {"kind": "supervised", "epochs": epochs, "batch_size": 96, "optimizer": optimizer, "view": {"flip": 0.0}}
    recipe |= {"name": "small", "stages": {"train": stage}, "log": {"every_steps": 1}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


class Launch:
    """One `deepspeed --num_gpus RANKS train.py ...` in a working folder; a context manager that leaves no process."""

    def __init__(self, folder: Path, *arguments: str, ranks: int = 2, script: Path = REPOSITORY / "train.py"):
        self.log = folder / f"launch-{len(list(folder.glob('launch-*')))}.log"
        command = [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(_port()), script]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *LIMIT, *arguments],
                cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()

    def wait(self, seconds: float = 240) -> int:
        """Return the front end's exit code."""
        return self.process.wait(seconds)

    def wait_until(self, happened: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a condition; fails with the log if the run ends or the time passes first."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL every process of the launch: front end, launcher, ranks, workers."""
        try:
            family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)
        self.process.wait()

    def output(self) -> str:
        """Return what was printed so far."""
        return self.log.read_text(errors="replace")


def _port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
