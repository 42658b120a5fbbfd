"""Environments as launchers make them, and which rank each means."""

import os
import shutil
import socket
import subprocess

import pytest

from sparse_mlp_ds.distributed import discovery
from sparse_mlp_ds.errors import ReportedError, UserError

# What each launcher was seen to set, for the last of its ranks.
DEEPSPEED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "1", "CROSS_SIZE": "2",
             "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}  # fmt: skip
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
            "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "node1",
            "MASTER_PORT": "29500"}  # fmt: skip
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
SRUN = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_STEP_NODELIST": "node[01-02]"}  # fmt: skip
BATCH_SHELL = {
    "SLURM_JOB_ID": "77",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
}
# mpirun reaches other hosts with a step of srun that starts its daemons.
DAEMON_STEP = SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "3"}
LAST = (3, 4, 1, 2)


@pytest.mark.parametrize(
    "environment, launcher, expected",
    [
        ({}, "python", (0, 1, 0, 1)),
        (DEEPSPEED, "deepspeed", LAST),
        (TORCHRUN, "torchrun", LAST),
        (OPEN_MPI, "mpirun", LAST),
        (HYDRA, "mpirun", LAST),
        (SRUN, "srun", LAST),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4"}, "srun", LAST),  # srun --mpi=pmi2
        (BATCH_SHELL, "python", (0, 1, 0, 1)),
        (BATCH_SHELL | DEEPSPEED, "deepspeed", LAST),
        (DAEMON_STEP | OPEN_MPI, "mpirun", LAST),
        # one deepspeed or torchrun per host, started by srun
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | DEEPSPEED, "deepspeed", LAST),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | TORCHRUN, "torchrun", LAST),
        # export RANK=$SLURM_PROCID ...
        (SRUN | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "the environment", (3, 4, 1, 4)),
    ],
)
def test_the_innermost_launcher_is_believed(environment, launcher, expected):
    found = discovery.discover(environment)
    numbers = (found.rank, found.world_size, found.local_rank, found.local_world_size)
    assert (found.launcher, numbers) == (launcher, expected)


@pytest.mark.parametrize(
    "environment, names",
    [
        # the batch script exported what holds for its own shell, and srun starts four tasks with it
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, ("RANK=0", "WORLD_SIZE=1", "SLURM_PROCID=3")),
        # `mpirun -np 4 deepspeed ...`: four launchers, each with a world of its own
        (OPEN_MPI | DEEPSPEED | {"CROSS_SIZE": "1"}, ("deepspeed (RANK=3", "mpirun (OMPI_COMM_WORLD_RANK=3")),
        (SRUN | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, ("torchrun (RANK=3", "srun (SLURM_PROCID=3")),
        (OPEN_MPI | HYDRA | {"PMI_RANK": "1"}, ("OMPI_COMM_WORLD_RANK=3", "PMI_RANK=1")),
    ],
)
def test_sources_that_contradict_one_another_are_listed(environment, names):
    with pytest.raises(UserError, match="conflicting launchers") as error:
        discovery.discover(environment)
    assert all(name in str(error.value) for name in names), error.value


def test_one_process_of_all_says_so():
    first = SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for environment, kind in ((first, UserError), (first | {"SLURM_PROCID": "1"}, ReportedError)):
        with pytest.raises(UserError) as error:
            discovery.discover(environment)
        assert type(error.value) is kind


@pytest.mark.parametrize(
    "environment, text",
    [
        ({"WORLD_SIZE": "4"}, "has WORLD_SIZE=4 but not RANK, LOCAL_RANK"),
        ({"RANK": "4", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "no rank of a world"),
        ({"RANK": "one", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "RANK=one"),
    ],
)
def test_half_an_environment_is_refused(environment, text):
    with pytest.raises(UserError, match=text):
        discovery.discover(environment)


def test_all_tasks_of_srun_find_the_same_master_and_jobs_differ():
    ends = []
    for rank in range(1, 4):
        environment = SRUN | {"SLURM_PROCID": str(rank)}
        discovery.announce(environment)
        ends.append((environment["MASTER_ADDR"], environment["MASTER_PORT"], environment["WORLD_SIZE"]))
    assert len(set(ends)) == 1 and ends[0][0] == "node01"
    other = SRUN | {"SLURM_JOB_ID": "78"}
    discovery.announce(other)
    assert other["MASTER_PORT"] != ends[0][1] and 15000 <= int(other["MASTER_PORT"]) < 32768


# What `scontrol show hostnames LIST` of Slurm 22.05 printed first.
HOST_LISTS = {
    "node1": "node1",
    "x,y[1-2]": "x",
    "node[03-07,9]": "node03",
    "b[3]": "b3",
    "a[08-10]": "a08",
    "a[9-11]": "a9",
    "a[10-12,08]": "a10",
    "a[1-2]b[3,5-6],c": "a1b3",
    "a[1-2][3-4]": "a13",
    "a[001-002]b[1]c[9-10]": "a001b1c9",
    "node[03-05,9]-ib[1-2],other": "node03-ib1",
}
# It refuses lists in which a bracket is not last; other versions, and cray's names, may have them.
HOST_LISTS |= {"a[1,5]-ib,b2": "a1-ib", "a-[1-2].cluster.example,b": "a-1.cluster.example"}


@pytest.mark.parametrize("nodes", HOST_LISTS)
def test_the_first_of_slurms_hosts(nodes):
    environment = SRUN | {"SLURM_STEP_NODELIST": nodes}
    discovery.announce(environment)
    assert environment["MASTER_ADDR"] == HOST_LISTS[nodes]


@pytest.mark.skipif(not shutil.which("scontrol"), reason="scontrol is not installed: apt-get install slurm-client")
def test_slurm_itself_takes_the_same_host_for_the_first(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\nPartitionName=p Nodes=localhost\n")
    for nodes, first in HOST_LISTS.items():
        command = ["scontrol", "show", "hostnames", nodes]
        shown = subprocess.run(command, env=os.environ | {"SLURM_CONF": str(conf)}, capture_output=True, text=True)
        # It prints nothing for the lists that it refuses.
        assert not shown.stdout or shown.stdout.split()[0] == first, nodes


def test_tasks_of_uneven_hosts():
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "0"}
    assert [discovery.discover(uneven | {"SLURM_NODEID": n}).local_world_size for n in "012"] == [3, 3, 1]


def test_a_taken_port_is_named_by_rank_zero_alone():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        first = DEEPSPEED | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}
        with pytest.raises(UserError, match=f"port {port} .* is taken"):
            discovery.announce(dict(first))
        discovery.announce(first | {"RANK": "1", "LOCAL_RANK": "1"})
    discovery.announce(dict(first))


def test_by_hand_the_master_must_be_named():
    with pytest.raises(UserError, match="not MASTER_ADDR and MASTER_PORT"):
        discovery.announce({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    alone = {}
    discovery.announce(alone)
    assert alone["MASTER_ADDR"] == "127.0.0.1" and alone["WORLD_SIZE"] == "1"


FIRST = DEEPSPEED | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
BAD_VARIABLES = [
    *(FIRST | {"MASTER_PORT": port} for port in ("0", "65536", "99999", "-1", "", "29500x", "٣", "9" * 5000)),
    *(FIRST | {"MASTER_ADDR": address} for address in ("", " ", "tcp://node1", "node 1", "[")),
    *(FIRST | {"WORLD_SIZE": size} for size in ("0", "-4", "four", "4.0", "")),
    *(FIRST | {"RANK": rank} for rank in ("4", "-1", "0.0", "")),
    *(FIRST | {"LOCAL_RANK": rank} for rank in ("2", "-1", "x")),
    *(FIRST | {"LOCAL_SIZE": size} for size in ("0", "5", "x")),
    *(TORCHRUN | {name: "x"} for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE")),
    *(OPEN_MPI | {name: value} for name in OPEN_MPI for value in ("-1", "x", "")),
    OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "2"},
    *(HYDRA | {name: "x"} for name in HYDRA),
    *(SRUN | {name: "x"} for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
                                      "SLURM_JOB_ID", "SLURM_STEP_ID")),
    *(SRUN | {"SLURM_STEP_TASKS_PER_NODE": text} for text in ("", "x", "2(x", "2(x99999999),1", "-1")),
    *(SRUN | {"SLURM_STEP_NODELIST": text} for text in ("", "a[1-2", "a]1[", "[", ",a", "a[]")),
]  # fmt: skip


@pytest.mark.parametrize("environment", BAD_VARIABLES)
def test_a_variable_that_cannot_be_is_named_in_one_line(environment):
    with pytest.raises(UserError) as error:
        discovery.announce(dict(environment))
    text = str(error.value)
    assert "\n" not in text and len(text) < 6000 and any(name in text for name in environment), text


LEFT_BEHIND = {"MASTER_ADDR": "a-host-that-is-gone", "MASTER_PORT": "99999"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH_SHELL,
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                    "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a[1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"},
    ],
)  # fmt: skip
def test_one_process_alone_needs_no_master(environment):
    environment = environment | LEFT_BEHIND
    assert discovery.announce(environment).world_size == 1
    assert environment["MASTER_ADDR"] == "127.0.0.1" and 0 < int(environment["MASTER_PORT"]) < 65536


def test_brackets_of_an_ipv6_address_are_those_of_urls():
    environment = DEEPSPEED | {"MASTER_ADDR": "[2001:db8::7]"}
    discovery.announce(environment)
    assert environment["MASTER_ADDR"] == "2001:db8::7"
