"""How many threads a rank computes with, as its cores, its neighbours, its container and the user say."""

import math
import os
import subprocess
import sys

import pytest

from sparse_mlp_ds.distributed.network import free_port
from sparse_mlp_ds.distributed.threads import number, quota

two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)
CASES = {
    "alone": ({0, 1, 2, 3}, [{0, 1, 2, 3}], math.inf, 4),
    "two who share all cores": ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, math.inf, 2),
    "each bound to cores of its own": ({0, 1, 2}, [{0, 1, 2}, {3, 4, 5}], math.inf, 3),
    "bound to cores of different numbers": ({3}, [{0, 1, 2}, {3}], math.inf, 1),
    "some cores shared": ({0, 1, 2}, [{0, 1, 2}, {2, 3}], math.inf, 2),
    "thirds make a whole": ({0, 1, 2}, [{0, 1, 2}] * 3, math.inf, 1),
    "more ranks than cores": ({0}, [{0}] * 3, math.inf, 1),
    "a container of two cores' time": (set(range(16)), [set(range(16))], 2.0, 2),
    "a container for two ranks": (set(range(16)), [set(range(16))] * 2, 5.0, 2),
    "less than a core": ({0, 1}, [{0, 1}], 0.5, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_ranks_fill_the_cores_that_they_may_use(name):
    mine, of_all, allowed, expected = CASES[name]
    assert number(mine, of_all, allowed) == expected


QUOTAS = {
    "none": ({}, math.inf),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, math.inf),
    "version 2": ({"cpu.max": "250000 100000\n"}, 2.5),
    "version 1, no limit": ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    "version 1": ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_what_a_container_may_use(tmp_path, name):
    files, expected = QUOTAS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    assert quota(tmp_path) == expected


RANK = """
import os, sys, torch
if len(sys.argv) > 1:
    os.sched_setaffinity(0, {int(sys.argv[1])})
from sparse_mlp_ds.distributed import process_group
with process_group.join(60):
    print(torch.get_num_threads())
"""
RANKS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
SAID = {
    "by nobody": ({}, 1),
    "by the user": ({"OMP_NUM_THREADS": "2"}, 2),
    "by torchrun, which always says it": ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, 1),
}


@two_cores
@pytest.mark.parametrize("name", SAID)
def test_a_rank_takes_its_share_unless_the_user_says_how_many_threads(name):
    variables, expected = SAID[name]
    clean = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        [sys.executable, "-c", RANK, core],
        env=clean | RANKS | variables, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) == expected


BOUND = {
    "neither": ("0-7", "0-7", [4, 4]),
    "each to cores of its own": ("0-3", "4-7", [4, 4]),
    "one to a core that the other one may use, too": ("0-3", "3-3", [3, 1]),
}
"""What two ranks are bound to, and the threads that they take; these cores need not exist."""


@pytest.mark.parametrize("name", BOUND)
@pytest.mark.parametrize("launcher", ["a launcher", "torchrun"])
def test_two_ranks_tell_each_other_where_they_are_bound(launcher, name):
    *bound, expected = BOUND[name]
    clean = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    clean |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if launcher == "torchrun":
        clean |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}
    processes = []
    for rank, cores in enumerate(bound):
        first, last = map(int, cores.split("-"))
        host = "from sparse_mlp_ds.distributed import host\n"
        code = f"{host}host.core_numbers = lambda: set(range({first}, {last} + 1))\n{RANK}"
        env = clean | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True))
    try:
        assert [int(process.communicate(timeout=120)[0].split()[-1]) for process in processes] == expected
    finally:
        for process in processes:
            process.kill()
