"""Ranks that die, fail, stop and get stuck: everything is gone within 30 s, and one report names who was first."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sparse_mlp_ds.distributed import processes
from tests.helpers import harness
from tests.helpers.processes import agents_of

pytestmark = pytest.mark.timeout(240)
BOUND = 30
WORLD = 3


def _rank(rank: int, port: int, folder: Path, fault: str, limit: float) -> None:
    """What a rank of train.py does, with steps that are one reduction each."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_SIZE": str(WORLD),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import torch

    from sparse_mlp_ds.distributed import comm, process_group
    from sparse_mlp_ds.errors import StoppedError, UserError
    from sparse_mlp_ds.train.stop_request import StopRequest
    from sparse_mlp_ds.watchdog import client

    loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(200)"])
    (folder / f"pids{rank}").write_text(f"{os.getpid()} {loader.pid}")
    code = 0
    try:
        with process_group.join(60), client.watch(limit) as watch:
            stop = StopRequest(folder)
            if rank == 0:
                watch.begin_run(folder, None, ["sh", "-c", f"cat >> {folder}/told"])
            for step in range(1, 10000):
                watch.at("data", "train", step)
                here = rank == 1 and (folder / "now").exists()
                if here and fault == "exception":
                    raise ValueError("the first mistake")
                if here and fault == "bad input":
                    raise UserError("a shard: remake it")
                if here and fault == "stuck":
                    time.sleep(200)
                watch.at("forward")
                comm.all_reduce(torch.ones(8))
                watch.at("stop")
                if stop.agreed():
                    raise StoppedError
                (folder / f"step{rank}").write_text(str(step))
                time.sleep(0.02)
                if fault == "none" and step == 20:
                    break
    except StoppedError:
        code = 85
    except UserError:
        code = 2
    loader.kill()
    os._exit(code)


class Ranks:
    """Processes of `_rank`; leaves none."""

    def __init__(self, folder: Path, fault: str, limit: float = 60):
        self.folder, self.limit = folder, limit
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        self.ranks = [
            harness._context.Process(target=_rank, args=(rank, port, folder, fault, limit)) for rank in range(WORLD)
        ]

    def __enter__(self):
        for rank in self.ranks:
            rank.start()
        deadline = time.monotonic() + 120
        while not all((self.folder / f"step{rank}").exists() for rank in range(WORLD)):
            assert time.monotonic() < deadline and not self.ended(), self.output()
            time.sleep(0.1)
        pids = [int(pid) for rank in range(WORLD) for pid in (self.folder / f"pids{rank}").read_text().split()]
        self.agents = agents_of(pids)
        assert len(self.agents) == WORLD
        self.everyone = [*map(psutil.Process, pids), *self.agents]
        return self

    def __exit__(self, *exception):
        for one in getattr(self, "everyone", []):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        for rank in self.ranks:
            rank.kill()
            rank.join()

    def ended(self) -> list[int]:
        return [rank.exitcode for rank in self.ranks if rank.exitcode is not None]

    def gone_within(self, seconds: float) -> float:
        """Wait until no process of the run is left; return how long that took."""
        started = time.monotonic()
        while left := [one for one in self.everyone if processes.runs(one)]:
            assert time.monotonic() - started < seconds, (left, self.output())
            time.sleep(0.1)
        for rank in self.ranks:
            rank.join()
        return time.monotonic() - started

    def output(self) -> str:
        return (self.folder / "output").read_text() if (self.folder / "output").exists() else ""

    def report(self) -> str:
        """Return the one report's first line."""
        (line,) = [line for line in self.output().splitlines() if line.startswith("FAILED FIRST")]
        return line


HERE = re.escape(socket.gethostname())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank(tmp_path, rank):
    with Ranks(tmp_path, "kill") as ranks:
        ranks.ranks[rank].kill()
        took = ranks.gone_within(BOUND)
        assert re.match(rf"FAILED FIRST: rank {rank} on {HERE} at step \d+ of stage train, in \w+: its process is gone",
                        ranks.report())  # fmt: skip
        assert [rank.exitcode for rank in ranks.ranks] == [-9 if r == rank else 1 for r in range(WORLD)]
        assert "Traceback" not in ranks.output()
    assert (tmp_path / "told").read_text().startswith(f"{tmp_path}: failed: {ranks.report()}\n")
    print(f"gone after {took:.1f} s")


def test_an_exception_is_the_only_traceback(tmp_path):
    with Ranks(tmp_path, "exception") as ranks:
        (tmp_path / "now").touch()
        took = ranks.gone_within(BOUND)
        assert re.match(rf"FAILED FIRST: rank 1 on {HERE} at step \d+ of stage train, in data: ValueError: the first",
                        ranks.report())  # fmt: skip
        assert ranks.output().count("Traceback") == 1 and all(code == 1 for code in ranks.ended())
    print(f"gone after {took:.1f} s")


def test_one_ranks_bad_input_ends_all_with_code_2(tmp_path):
    with Ranks(tmp_path, "bad input") as ranks:
        (tmp_path / "now").touch()
        ranks.gone_within(BOUND)
        assert ranks.ended() == [2] * WORLD and "FAILED FIRST" not in ranks.output()
    told = (tmp_path / "told").read_text()
    assert re.match(rf"{tmp_path}: failed: rank 1 on {HERE} at step \d+ of stage train, in data: exit code 2: ", told)
    assert told.endswith(": a shard: remake it\n")


@pytest.mark.parametrize("fault", ["stuck", "stopped"])
def test_a_rank_that_goes_no_further(tmp_path, fault):
    with Ranks(tmp_path, fault, limit=6) as ranks:
        (tmp_path / "now").touch()
        if fault == "stopped":
            os.kill(ranks.ranks[1].pid, signal.SIGSTOP)
        took = ranks.gone_within(6 + BOUND)
        why = "it is stopped" if fault == "stopped" else "it waits for no rank"
        where = rf"FAILED FIRST: rank 1 on {HERE} at step \d+ of stage train, in \w+: "
        assert re.match(where + rf"no progress for \d+ s: {why}", ranks.report())
        assert "test_watchdog.py" in ranks.output(), "the stack is missing"
    assert (tmp_path / "told").read_text().startswith(f"{tmp_path}: stalled: FAILED FIRST: rank 1 ")
    print(f"gone after {took:.1f} s")


def test_no_rank_outlives_its_agent(tmp_path):
    with Ranks(tmp_path, "agent") as ranks:
        next(one for one in ranks.agents if '"rank": 2' in " ".join(processes.command(one))).kill()
        ranks.gone_within(BOUND)
        assert "FAILED FIRST: rank 2" in ranks.report()
        assert f"error: rank 2 on {socket.gethostname()} ends, because the process that watches it" in ranks.output()


def _is_seen_waiting(call: str, folder: Path) -> bool:
    """Whether a rank's stack shows that it waits, while rank 0 is in a call and rank 1 does something else."""
    import faulthandler
    import threading

    from sparse_mlp_ds.distributed import comm, process_group
    from sparse_mlp_ds.train.stop_request import StopRequest
    from sparse_mlp_ds.watchdog import client, diagnosis

    rank, stop = process_group.rank(), StopRequest(folder)
    stacks = open(folder / f"stacks{rank}", "w+")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR2, stacks)
    comm.barrier()

    def show() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.5)
        (folder / f"seen{rank}").touch()

    shows = threading.Thread(target=show)
    shows.start()
    if rank == 1:
        while not all((folder / f"seen{number}").exists() for number in range(2)):
            time.sleep(0.1)
    if call == "stop":
        stop.agreed()  # only asks; the next call waits for the answer
        stop.agreed()
    else:
        comm.barrier()
    shows.join()
    return diagnosis.is_waiting(Path(stacks.name).read_text(), client.WAITING_IN)


@pytest.mark.parametrize("call", ["stop", "barrier"])
def test_a_rank_that_waits_for_another_is_told_from_one_that_does_not(tmp_path, call):
    """In the loop's stop request too, whose wait is a call into C that leaves no frame of its own."""
    assert harness.run(2, _is_seen_waiting, call, tmp_path) == [True, False]


def test_the_end_and_a_stop_are_no_failures(tmp_path):
    for name, code in (("none", 0), ("request", 85)):
        (tmp_path / name).mkdir()
        with Ranks(tmp_path / name, name) as ranks:
            if name == "request":
                os.kill(ranks.ranks[2].pid, signal.SIGTERM)
            ranks.gone_within(BOUND)
            assert ranks.ended() == [code] * WORLD and "FAILED" not in ranks.output(), ranks.output()
            assert not (tmp_path / name / "told").exists(), "rank 0 tells of its end itself"
