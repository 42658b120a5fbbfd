"""The same two ranks under every launcher of this machine: the same losses, asked to stop on the way or not."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers import records
from tests.helpers.launcher import DEEPSPEED, MOE, REPOSITORY, small_recipe

pytestmark = pytest.mark.timeout(600)

TRAIN = str(REPOSITORY / "train.py")
SHORT = ("--recipe", "small.yaml", "--ds_config", MOE, "--set", "train.max_steps=30", "--out", "run")
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2")
needs_mpi = pytest.mark.skipif(not shutil.which("mpirun"), reason="mpirun not installed: apt-get install openmpi-bin")


def _start(folder: Path, *command: str, stop: bool = False, **env: str) -> tuple[int, str]:
    """Run a command to its end, and whatever it started too; return its exit code and output.

    stop: ask the second rank to stop as soon as a step is logged.
    """
    log = folder / "log"
    small_recipe(folder, epochs=3)
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | env, start_new_session=True,
        )  # fmt: skip
        try:
            if stop:
                while not (folder / "run/metrics.jsonl").exists():
                    assert process.poll() is None, log.read_text(errors="replace")
                    time.sleep(0.02)
                _ranks(folder)[1].send_signal(signal.SIGUSR1)
            code = process.wait(240)
        finally:
            for one in psutil.process_iter():
                try:
                    if os.getsid(one.pid) == process.pid:
                        one.kill()
                except (ProcessLookupError, psutil.NoSuchProcess):
                    continue
            process.wait()
    return code, log.read_text(errors="replace")


def _ranks(folder: Path) -> list[psutil.Process]:
    """Return the processes in a folder that are ranks, in the order in which they were started."""
    found = []
    for one in psutil.process_iter():
        try:
            command = one.cmdline()
            loader = one.parent().cmdline() == command
            if one.cwd() == str(folder) and TRAIN in command[1:3] and not loader:
                found.append(one)
        except (psutil.Error, ProcessLookupError, AttributeError):
            continue
    return sorted(found, key=lambda one: one.create_time())


def _losses(folder: Path, *command: str, **env: str) -> tuple[int, list[float]]:
    code, output = _start(folder, *command, **env)
    assert code == 0, output
    losses = [record["loss"] for record in records.of_steps(folder / "run")]
    return json.loads((folder / "run/summary.json").read_text())["world_size"], losses


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    return _losses(folder, DEEPSPEED, "--num_gpus", "2", "--master_port", "29611", TRAIN, *SHORT)


def _without_mpi4py(folder: Path) -> str:
    """Return a PYTHONPATH on which mpi4py cannot be imported."""
    (folder / "mpi4py.py").write_text("raise ImportError('mpi4py is not for this launcher')")
    return f"{folder}:{REPOSITORY}"


def _stopped(folder: Path, code: int, *command: str, **env: str) -> None:
    """Let the command be stopped; the next one goes on."""
    found, output = _start(folder, *command, stop=True, **env)
    assert found == code and "SIGUSR1, stopping after this step" in output, output
    assert output.count("start again with the same command") == 1, output
    assert "Traceback" not in output or code == 1, output  # torchrun makes one for any code but 0
    assert not (folder / "run/summary.json").exists()


@pytest.mark.long
def test_torchrun(expected, tmp_path):
    torchrun = Path(sys.executable).with_name("torchrun")
    command = (torchrun, "--nproc_per_node", "2", "--master_port", "29612", TRAIN, *SHORT)
    env = {"PYTHONPATH": _without_mpi4py(tmp_path)}
    _stopped(tmp_path, 1, *command, **env)  # torchrun's own, whatever a rank's is
    assert _losses(tmp_path, *command, **env) == expected


@pytest.mark.long
@needs_mpi
def test_mpirun(expected, tmp_path):
    _stopped(tmp_path, 85, *MPIRUN, sys.executable, TRAIN, *SHORT)
    assert _losses(tmp_path, *MPIRUN, sys.executable, TRAIN, *SHORT) == expected


@pytest.mark.long
def test_the_variables_of_srun(expected, tmp_path):
    """Two tasks as srun starts them: the shell stands in for it."""
    tasks = (
        "export SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0 "
        'SLURM_STEP_NODELIST=localhost; SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & '
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!'
    )
    command = ("bash", "-c", tasks, "bash", sys.executable, TRAIN, *SHORT)
    env = {"PYTHONPATH": _without_mpi4py(tmp_path)}
    _stopped(tmp_path, 85, *command, **env)
    assert _losses(tmp_path, *command, **env) == expected


def test_nobody(tmp_path):
    command = (sys.executable, TRAIN, *SHORT)
    assert _losses(tmp_path, *command, PYTHONPATH=_without_mpi4py(tmp_path))[0] == 1


@needs_mpi
def test_a_launcher_inside_another_is_refused_in_one_line(tmp_path):
    code, output = _start(tmp_path, *MPIRUN, DEEPSPEED, "--num_gpus", "1", "--master_port", "29613", TRAIN, *SHORT)
    (error,) = [line for line in output.splitlines() if "error: " in line]
    assert code == 2 and "deepspeed (RANK=0" in error and "mpirun (OMPI_COMM_WORLD_RANK=0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
def test_two_ranks_that_meet_at_an_address_of_ipv6(expected, tmp_path):
    ranks = 'RANK=1 LOCAL_RANK=1 "$@" & RANK=0 LOCAL_RANK=0 "$@" && wait $!'
    command = ("bash", "-c", ranks, "bash", sys.executable, TRAIN, *SHORT)
    assert _losses(tmp_path, *command, WORLD_SIZE="2", MASTER_ADDR="[::1]", MASTER_PORT="29614") == expected


@pytest.mark.parametrize("package", ["torch", "pydantic", "psutil", "safetensors", "deepspeed"])
def test_a_package_that_cannot_be_imported_is_one_line(tmp_path, package):
    """Some of these are imported at once, some when the recipe is known, some last."""
    (tmp_path / f"{package}.py").write_text("raise ImportError('built for a different Python')")
    code, output = _start(tmp_path, sys.executable, TRAIN, *SHORT, "--check", PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    (line,) = [line for line in output.splitlines() if "real_accelerator" not in line]
    assert code == 2 and line.startswith(f"error: package {package} cannot be imported (built for a different Python)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("start", [(TRAIN,), ("-m", "sparse_mlp_ds.train")], ids=["train.py", "-m"])
def test_a_python_that_is_too_old_is_one_line(tmp_path, start):
    old = "import sys, runpy; sys.version_info = (3, 9, 18); "
    if start[0] == "-m":  # as the interpreter has it while it looks for the module
        old += f"sys.argv = ['-m']; runpy.run_module('{start[1]}', run_name='__main__')"
    else:
        old += f"runpy.run_path('{start[0]}', run_name='__main__')"
    code, output = _start(tmp_path, sys.executable, "-c", old)
    assert code == 2 and len(output.splitlines()) == 1 and "needs Python 3.10 or newer" in output


def test_what_another_run_left_in_the_environment_is_nothing_to_one_process(tmp_path):
    left = {"MASTER_ADDR": "a-host-that-is-gone.invalid", "MASTER_PORT": "99999"}
    check = (sys.executable, TRAIN, *SHORT, "--set", "train.max_steps=1")
    assert _losses(tmp_path, *check, **left)[0] == 1
