"""What a host's GPUs cannot do ends a run with code 2 and one line, before any rank waits for another one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_mlp_ds.distributed.network import free_port
from tests.gpu_emulated.runs import REPOSITORY

SECONDS = 240
"""Importing torch and DeepSpeed takes some on busy cores; ranks that waited for each other would take 600."""
FEW = "ranks but {} visible devices; lower its slots"


def refused(folder: Path, *arguments: str, ranks: int, **emulated: str) -> list[str]:
    """Start each rank by itself, as a launcher would; return all lines with an error."""
    command = [sys.executable, "-m", "tests.gpu_emulated", "--", "--out", "run", "--ds_config", "moe", *arguments]
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **emulated}
    processes = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    assert [process.returncode for process in processes] == [2] * ranks, "\n".join(outputs)
    return [line for output in outputs for line in output.splitlines() if "error" in line.lower()]


def test_fewer_gpus_than_ranks(workplace):
    (line,) = refused(workplace, ranks=3, EMULATED_DEVICES="2")
    assert "3 " + FEW.format(2) in line


def test_one_gpu_for_two_ranks(workplace):
    """As where every rank sees one GPU of its own, so that ranks must compare them: in the pre-flight."""
    (line,) = refused(workplace, ranks=2, EMULATED_SHARED="1")
    assert "2 " + FEW.format(1) in line
    assert not list(workplace.glob("run/checkpoints/*"))


@pytest.mark.parametrize(("capability", "arguments", "said"), [
    ("7.5", [], "bf16.enabled: this machine's emulated GPU does not train in bf16; use fp16"),
    ("9.0", ["--set", "train.compile=on"], "train.compile: on: there is no Triton that works with this GPU; install"),
])  # fmt: skip
def test_what_the_gpu_lacks(workplace, capability, arguments, said):
    (line,) = refused(workplace, *arguments, ranks=2, EMULATED_CAPABILITY=capability)
    assert said in line
    assert not (workplace / "run").exists()
