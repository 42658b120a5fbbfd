"""Four hosts over ssh of which one is wrong, or goes away: the whole run ends, says why, and leaves nothing behind."""

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

import sparse_mlp_ds
from sparse_mlp_ds.distributed import processes
from tests.helpers import records
from tests.helpers.hosts import _NAMESPACES, FourHosts, why_not
from tests.helpers.launcher import DEEPSPEED, MOE, REPOSITORY, small_recipe

_reason = why_not()
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(_reason), reason=_reason)]
KEY = "a-key-that-nobody-may-see"
BOUND = 30
STUCK = 20
"""Seconds without progress, after which a rank is."""


class Command:
    """The README's command, given on node1 as a user does; a context manager that leaves the lab to end the rest."""

    def __init__(self, lab: FourHosts, folder: Path, nodes: int, hosts: list[str]):
        (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in hosts))
        small_recipe(folder, epochs=1000)
        (folder / "key").write_text(KEY)
        (folder / "start").write_text(
            f"cd {folder}\nexport PYTHONPATH={REPOSITORY} WANDB_API_KEY=$(cat key)\n"
            f"exec {DEEPSPEED} --hostfile hostfile --num_nodes {nodes} {REPOSITORY}/train.py --recipe small.yaml "
            f"--ds_config {MOE} --out run --set checkpoint.every_steps=1 --set stages.train.batch_size=80 "
            f"--set train.timeout_seconds={STUCK}\n"
        )
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        enter = ["nsenter", f"--target={lab._first}", *_NAMESPACES]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*enter, "ssh", "node1", "sh", str(folder / "start")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def _of_run(folder: Path, word: str = "") -> list[psutil.Process]:
    """Every process of a run on any host: ranks, loaders, agents, launchers; only those with a word, if given."""
    found = []
    for process in psutil.process_iter():
        try:
            words = processes.command(process)
            if process.cwd() == str(folder) and "python" in words[0] and (not word or word in words):
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def test_three_hosts_for_four_and_another_version_on_one(tmp_path):
    other = tmp_path / "other.py"
    other.write_text(Path(sparse_mlp_ds.__file__).read_text() + "\n# of last week\n")
    with FourHosts(tmp_path / "lab", count=3) as lab:
        code, output = lab.run("ssh", "node3", "mount", "--bind", str(other), sparse_mlp_ds.__file__, cwd=tmp_path)
        assert code == 0, output
        command = Command(lab, tmp_path, 4, lab.names)
        assert command.process.wait(400) == 2, command.output()
    errors = sorted({line.split("error: ")[1] for line in command.output().splitlines() if "error: " in line})
    assert len(errors) == 2 and errors[0].startswith("4 hosts were asked for, 3 joined: node1, node2, node3"), errors
    assert errors[1].startswith("code differs on node3 from 2 other hosts"), errors
    assert "Traceback" not in command.output() and not (tmp_path / "run").exists()


def _wait_for(command: Command, said: str) -> None:
    deadline = time.monotonic() + 400
    while not re.search(said, command.output()):
        assert command.process.poll() is None and time.monotonic() < deadline, command.output()
        time.sleep(0.5)


def _gone_within(command: Command, folder: Path, seconds: float) -> float:
    started = time.monotonic()
    while left := _of_run(folder):
        assert time.monotonic() - started < seconds, (left, command.output())
        time.sleep(0.2)
    return time.monotonic() - started


def _is_rank(number: int, process: psutil.Process) -> bool:
    return "--local_rank=0" in processes.command(process) and processes.variables(process).get("RANK") == str(number)


# what happens on node3: the signal, to whom, and what is reported
FAULTS = {
    "a killed rank": (signal.SIGKILL, lambda one: _is_rank(2, one), "its process is gone, without an error message"),
    "a stopped rank": (signal.SIGSTOP, lambda one: _is_rank(2, one), r"no progress for \d+ s: it is stopped"),
    "a killed launcher": (signal.SIGKILL, lambda one: _launches(2, one), ""),
}


def _launches(number: int, process: psutil.Process) -> bool:
    return {f"--node_rank={number}", "deepspeed.launcher.launch"} <= set(processes.command(process))


def test_ranks_launchers_and_hosts_that_go_and_a_run_that_goes_on_every_time(tmp_path):
    with FourHosts(tmp_path / "lab") as lab:
        for fault, (number, chosen, said) in FAULTS.items():
            command = Command(lab, tmp_path, 4, lab.names)
            _wait_for(command, r"train +\d+/")
            victims = [one for one in _of_run(tmp_path) if chosen(one)]
            victims[0].send_signal(number)  # its loaders come after it
            took = _gone_within(command, tmp_path, BOUND + STUCK * (number == signal.SIGSTOP))
            assert command.process.wait(10) != 0, (fault, command.output())
            reports = [line for line in command.output().splitlines() if "FAILED FIRST" in line]
            if said:
                assert len(reports) == 1 and re.search(rf"rank 2 on node3 at step \d+ of .*: {said}", reports[0]), (
                    reports
                )
            else:
                assert not reports and "is gone; the run saves and ends" in command.output()
            assert "Traceback" not in command.output(), command.output()
            print(f"{fault}: gone after {took:.1f} s")

        command = Command(lab, tmp_path, 4, lab.names)
        _wait_for(command, r"train +\d+/")
        # what the user's shell knows has reached every rank, and is to be read nowhere
        agents = _of_run(tmp_path, "sparse_mlp_ds.watchdog.agent")
        assert [processes.variables(one).get("WANDB_API_KEY") for one in agents] == [KEY] * 4
        assert KEY not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert KEY not in command.output()
        lab.run("ip", "link", "set", "node3", "down", cwd=tmp_path)
        took = _gone_within(command, tmp_path, BOUND)
        assert command.process.wait(10) not in (0, 85)
        (report,) = [line for line in command.output().splitlines() if "FAILED FIRST" in line]
        assert re.search(r"rank 2 on node3 at step \d+ of stage train, in \w+: no message from it for", report), report
        print(f"a host without a network: gone after {took:.1f} s")

        rest = Command(lab, tmp_path, 3, [name for name in lab.names if name != "node3"])
        _wait_for(rest, r"resuming from run/checkpoints/step_\d+, written on another topology: world size 4 -> 3")
        _wait_for(rest, r"train +\d+/")
        (tmp_path / "run/stop").touch()
        assert rest.process.wait(120) == 85, rest.output()
    assert "80 images = 24 or 32 x 1 accumulated x 3 ranks" in rest.output()
    steps = [record["step"] for record in records.of_steps(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))
