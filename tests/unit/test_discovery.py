"""Environments as launchers make them, and which rank each means."""

import socket

import pytest

from sparse_mlp_ds import discovery
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
    "environment, launcher, place",
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
def test_the_innermost_launcher_is_believed(environment, launcher, place):
    found = discovery.discover(environment)
    assert (found.launcher, (found.rank, found.world, found.local_rank, found.ranks_here)) == (launcher, place)


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


@pytest.mark.parametrize(
    "nodes, first",
    [("node1", "node1"), ("node[03-07,9]", "node03"), ("a[1,5]-ib,b2", "a1-ib"), ("x,y[1-2]", "x")],
)  # fmt: skip
def test_the_first_of_slurms_hosts(nodes, first):
    environment = SRUN | {"SLURM_STEP_NODELIST": nodes}
    discovery.announce(environment)
    assert environment["MASTER_ADDR"] == first


def test_tasks_of_uneven_hosts():
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_STEP_NUM_TASKS": "7"}
    assert [discovery.discover(uneven | {"SLURM_NODEID": n}).ranks_here for n in "012"] == [3, 3, 1]


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
