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

from tests.ranks import harness

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

    from sparse_mlp_ds import dist
    from sparse_mlp_ds.errors import UserError
    from sparse_mlp_ds.train import watchdog
    from sparse_mlp_ds.train.stop import StoppedError, StopRequest

    loader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(200)"])
    (folder / f"pids{rank}").write_text(f"{os.getpid()} {loader.pid}")
    code = 0
    try:
        with dist.process_group(60), watchdog.watch(limit) as watch:
            stop = StopRequest(folder)
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
                dist.all_reduce(torch.ones(8))
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
        self.sentries = [one for one in map(_sentry_of, psutil.process_iter()) if one]
        pids = [int(pid) for rank in range(WORLD) for pid in (self.folder / f"pids{rank}").read_text().split()]
        mine = [one for one in self.sentries if any(f'"pid": {pid},' in one.cmdline()[-1] for pid in pids)]
        assert len(mine) == WORLD
        self.everyone = [*map(psutil.Process, pids), *mine]
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
        while left := [one for one in self.everyone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
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


def _sentry_of(process: psutil.Process) -> psutil.Process | None:
    try:
        return process if "sparse_mlp_ds.sentry" in process.cmdline() else None
    except psutil.Error:
        return None


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


@pytest.mark.parametrize("fault", ["stuck", "stopped"])
def test_a_rank_that_goes_no_further(tmp_path, fault):
    with Ranks(tmp_path, fault, limit=6) as ranks:
        (tmp_path / "now").touch()
        if fault == "stopped":
            os.kill(ranks.ranks[1].pid, signal.SIGSTOP)
        took = ranks.gone_within(6 + BOUND)
        why = "it is stopped" if fault == "stopped" else "it waits for nobody"
        where = rf"FAILED FIRST: rank 1 on {HERE} at step \d+ of stage train, in \w+: "
        assert re.match(where + rf"no progress for \d+ s: {why}", ranks.report())
        assert "test_watchdog.py" in ranks.output(), "the stack is missing"
    print(f"gone after {took:.1f} s")


def test_no_rank_outlives_its_sentry(tmp_path):
    with Ranks(tmp_path, "sentry") as ranks:
        next(one for one in ranks.everyone if one in ranks.sentries and '"rank": 2' in one.cmdline()[-1]).kill()
        ranks.gone_within(BOUND)
        assert "FAILED FIRST: rank 2" in ranks.report()


def test_the_end_and_a_stop_are_no_failures(tmp_path):
    for name, code in (("none", 0), ("request", 85)):
        (tmp_path / name).mkdir()
        with Ranks(tmp_path / name, name) as ranks:
            if name == "request":
                os.kill(ranks.ranks[2].pid, signal.SIGTERM)
            ranks.gone_within(BOUND)
            assert ranks.ended() == [code] * WORLD and "FAILED" not in ranks.output(), ranks.output()
