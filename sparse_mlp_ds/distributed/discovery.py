"""Which rank this process is, from the variables that a launcher has set: deepspeed, torchrun, mpirun, srun, or none.

Launchers nest (a batch job of Slurm runs `deepspeed`; mpirun starts its daemons with srun), so the innermost launcher
that has set its variables is believed, in this order:

1. `deepspeed`, `torchrun`, or a script of the user: RANK, WORLD_SIZE and LOCAL_RANK;
2. `mpirun`: Open MPI's OMPI_COMM_WORLD_* or Hydra's PMI_*;
3. `srun` with several tasks: SLURM_STEP_NUM_TASKS (the shell of a batch job has SLURM_PROCID too, but no such step);
4. none of these: a world of one rank.

It is a conflict if the outer launcher has started a different number of processes than the inner one knows of: the run
would be trained several times at once. This file imports neither torch nor DeepSpeed, so that it can run first.
"""

import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from sparse_mlp_ds.distributed import network
from sparse_mlp_ds.errors import UserError, printed_by_one

LOWEST_PORT, PORTS = 15000, 16000
"""First port and number of ports for rank 0's port under Slurm: below the range from which the kernel assigns ports."""


@dataclass(frozen=True)
class Launch:
    """How a launcher started this process."""

    launcher: str
    """Name of the launcher, for messages."""
    rank: int
    """Rank of this process in the run."""
    world_size: int
    """Number of ranks of the run."""
    local_rank: int
    """Number of this rank among the ranks of its host."""
    local_world_size: int
    """Number of ranks of the run on this host."""
    variables: str
    """Environment variables that rank and world size were read from, as `NAME=VALUE, ...`, for messages."""
    agents: int = 1
    """Number of the launcher's own processes, one per host; an outer launcher may have started these."""


def discover(environment: Mapping[str, str]) -> Launch:
    """Return how this process was launched.

    Raises UserError that lists the launchers if they contradict one another, ReportedError on all ranks but one.
    """
    inner, mpi, slurm = (_fits(read(environment)) for read in (_launched, _mpirun, _srun))
    outer = mpi or slurm
    if inner is None:
        return outer or Launch("python", 0, 1, 0, 1, "nothing")
    if outer and outer.world_size > 1:
        by_hand = inner.launcher == "the environment"
        if by_hand:
            agree = (inner.rank, inner.world_size) == (outer.rank, outer.world_size)
            fix = f"remove RANK, WORLD_SIZE and LOCAL_RANK from the environment, {outer.launcher} sets its own"
        else:
            agree = inner.agents == outer.world_size
            fix = f"start {inner.launcher} once per host, or train.py directly under {outer.launcher}"
        if not agree:
            launchers = ", ".join(f"{launch.launcher} ({launch.variables})" for launch in (inner, outer))
            error = UserError(f"conflicting launchers: {launchers}; {fix}")
            raise printed_by_one(error, here=outer.rank == 0 and inner.local_rank == 0)
    return inner


def announce(environment: MutableMapping[str, str]) -> Launch:
    """Put rank, world size and rank 0's address into the environment, where torch and this package look for them.

    Raises UserError if launchers contradict one another, if rank 0's port is taken, or if its address is unknown.
    """
    launch = discover(environment)
    environment.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
        LOCAL_WORLD_SIZE=str(launch.local_world_size),  # torchrun's name
        LOCAL_SIZE=str(launch.local_world_size),  # DeepSpeed's name
    )
    if launch.world_size == 1:  # nobody else is to be met, whatever a different run has left in the environment
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(network.free_port()))
        return launch
    if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        address, port = _master(launch, environment)
        environment.setdefault("MASTER_ADDR", address)
        environment.setdefault("MASTER_PORT", str(port))
    environment["MASTER_ADDR"] = _bare(environment["MASTER_ADDR"])
    port = _port(environment)
    if launch.rank == 0 and "TORCHELASTIC_RUN_ID" not in environment and not network.is_free(port):
        free = network.free_port()
        raise UserError(
            f"MASTER_PORT: port {port} of {socket.gethostname()} is taken, perhaps by a different run; give a free one "
            f"(deepspeed --master_port {free}, otherwise MASTER_PORT={free})"
        )
    return launch


def _fits(launch: Launch | None) -> Launch | None:
    """Return what a launcher has set. Raises UserError if a rank is no rank of its world."""
    if launch is None or (
        launch.rank < launch.world_size and launch.local_rank < launch.local_world_size <= launch.world_size
    ):
        return launch
    raise UserError(
        f"the environment's {launch.variables} (local rank {launch.local_rank} of {launch.local_world_size}) is no "
        "rank of a world; unset them, or set all to numbers that fit"
    )


def _launched(env: Mapping[str, str]) -> Launch | None:
    """Return what the launcher of deepspeed or torchrun, or the user's own script, has set."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = [name for name in names if name in env]
    if not given:
        return None
    variables = ", ".join(f"{name}={env[name]}" for name in given)
    if len(given) < len(names):
        missing = ", ".join(name for name in names if name not in env)
        raise UserError(f"the environment has {variables} but not {missing}; unset the former, or set all three")
    rank, world_size, local_rank = (_number(env, name) for name in names)
    if "TORCHELASTIC_RUN_ID" in env:
        launcher, agents = "torchrun", _number(env, "GROUP_WORLD_SIZE", 1)
        local_world_size = _number(env, "LOCAL_WORLD_SIZE", world_size)
    else:
        launcher = "deepspeed" if "CROSS_SIZE" in env else "the environment"
        agents = _number(env, "CROSS_SIZE", 1)
        local_world_size = _number(env, "LOCAL_SIZE", _number(env, "LOCAL_WORLD_SIZE", world_size))
    return Launch(launcher, rank, world_size, local_rank, local_world_size, variables, agents)


def _mpirun(env: Mapping[str, str]) -> Launch | None:
    """Return what an MPI library's mpirun has set."""
    libraries = (
        [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
        ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],  # srun may set the first two, not the last
    )
    found = []
    for names in libraries:
        if all(name in env for name in names):
            rank, world_size, local_rank, local_world_size = (_number(env, name) for name in names)
            variables = ", ".join(f"{name}={env[name]}" for name in names[:2])
            found.append(Launch("mpirun", rank, world_size, local_rank, local_world_size, variables))
    if len(found) == 2 and (found[0].rank, found[0].world_size) != (found[1].rank, found[1].world_size):
        launchers = ", ".join(f"mpirun ({launch.variables})" for launch in found)
        raise UserError(f"conflicting launchers: {launchers}; use one MPI")
    return found[0] if found else None


def _srun(env: Mapping[str, str]) -> Launch | None:
    """Return what srun has set for a step of several tasks."""
    world_size = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    if world_size < 2 or "SLURM_PROCID" not in env:
        return None
    tasks = _tasks_on(env.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)), _number(env, "SLURM_NODEID", 0))
    variables = f"SLURM_PROCID={env['SLURM_PROCID']}, SLURM_STEP_NUM_TASKS={world_size}"
    local_rank = _number(env, "SLURM_LOCALID", 0)
    return Launch("srun", _number(env, "SLURM_PROCID"), world_size, local_rank, tasks, variables)


def _master(launch: Launch, env: Mapping[str, str]) -> tuple[str, int]:
    """Return rank 0's address and port, the same on every rank."""
    if launch.world_size == 1:
        return "127.0.0.1", network.free_port()
    if launch.launcher == "srun":
        job = _number(env, "SLURM_JOB_ID", 0) * 64 + _number(env, "SLURM_STEP_ID", 0)
        return _first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")), LOWEST_PORT + job % PORTS
    if launch.launcher == "mpirun":
        return _broadcast_by_mpi(launch)
    missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env)
    raise UserError(f"the environment has {launch.variables} but not {missing}; set where rank 0 listens")


def _broadcast_by_mpi(launch: Launch) -> tuple[str, int]:
    """Return the address and port that rank 0 has chosen, broadcast by MPI; nothing else here uses mpi4py."""
    fix = "or set MASTER_ADDR and MASTER_PORT (mpirun -x)"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it found no MPI library
        raise UserError(f"mpirun: mpi4py cannot be used ({error}); install it, {fix}")
    if MPI.COMM_WORLD.size != launch.world_size:
        raise UserError(
            f"mpirun: {launch.variables}, but mpi4py sees {MPI.COMM_WORLD.size} processes: it is built for a different "
            f"MPI; reinstall it for this one, {fix}"
        )
    address = "127.0.0.1" if launch.local_world_size == launch.world_size else network.own_address()
    return MPI.COMM_WORLD.bcast((address, network.free_port()), root=0)


def _first_host(hosts: str) -> str:
    """Return the first name of a Slurm host list such as `rack[1-2]node[03-07,9],other`: `rack1node03`."""
    first = re.match(r"((?:[^\[\],]|\[[^\[\],-][^\[\]]*\])+)(?:,|$)", hosts)  # a comma inside of brackets ends no name
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={hosts} in the environment is no list of hosts; set MASTER_ADDR")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[1])


def _tasks_on(counts: str, node: int) -> int:
    """Return a node's entry of Slurm's list of tasks per node, such as `2(x3),1`: three nodes with 2, one with 1."""
    if not re.fullmatch(r"[0-9]{1,5}(\(x[0-9]{1,5}\))?(,[0-9]{1,5}(\(x[0-9]{1,5}\))?)*", counts):
        raise UserError(f"SLURM_STEP_TASKS_PER_NODE={counts} in the environment is no list of numbers; unset it")
    entries = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    tasks = [int(number) for number, times in entries for _ in range(int(times or 1))]
    return tasks[min(node, len(tasks) - 1)]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = str(env.get(name, default))
    if not re.fullmatch("[0-9]{1,18}", text):
        raise UserError(f"{name}={text} in the environment is not a number; unset it, or let the launcher set it")
    return int(text)


def _port(env: Mapping[str, str]) -> int:
    port = _number(env, "MASTER_PORT")
    if not 0 < port < 1 << 16:
        raise UserError(f"MASTER_PORT={port} in the environment is no port; ports are 1 to 65535")
    return port


def _bare(address: str) -> str:
    """Return an address of IPv6 without the brackets that URLs have; any other text as it is. Raises UserError."""
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    if not bare or any(c.isspace() or c in "[]/" for c in bare):
        raise UserError(
            f"MASTER_ADDR={address} in the environment is no name or address of a host; correct or unset it"
        )
    return bare
