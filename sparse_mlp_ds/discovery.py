"""Which rank this process is, from whatever started it: deepspeed, torchrun, mpirun, srun, or nobody.

Launchers nest (a batch job of Slurm runs `deepspeed`; mpirun starts its daemons with srun), so the innermost that
speaks is believed, in this order:

1. `deepspeed` and `torchrun`, or whoever else sets RANK, WORLD_SIZE and LOCAL_RANK;
2. `mpirun` (Open MPI's OMPI_COMM_WORLD_*, Hydra's PMI_*);
3. `srun` with several tasks (SLURM_STEP_NUM_TASKS: the shell of a batch job has a SLURM_PROCID too, but no step);
4. none of them: a world of one.

An outer one that started another number of processes than the inner one knows of is a conflict: it would train several
times at once. This file imports nothing of the package but its errors, so that it can run first.
"""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from sparse_mlp_ds.errors import ReportedError, UserError

LOWEST_PORT, PORTS = 15000, 16000
"""Ports derived from a job's number lie below those that the kernel hands out itself."""


@dataclass(frozen=True)
class Place:
    """A rank's place in its run."""

    launcher: str
    rank: int
    world: int
    local_rank: int
    ranks_here: int
    """Ranks on this host."""
    said: str
    """The variables that say so."""
    starts: int = 1
    """Processes of the launcher itself, one per host, that an outer launcher may have started."""


def discover(environment: Mapping[str, str]) -> Place:
    """Return where this process stands. Raises UserError listing the sources if they contradict one another."""
    inner, mpi, slurm = _launched(environment), _mpirun(environment), _srun(environment)
    outer = mpi or slurm
    if inner is None:
        return outer or Place("python", 0, 1, 0, 1, "nothing")
    if outer and outer.world > 1:
        by_hand = inner.launcher == "the environment"
        agree = (inner.rank, inner.world) == (outer.rank, outer.world) if by_hand else inner.starts == outer.world
        if not agree:
            fix = (
                f"remove RANK, WORLD_SIZE and LOCAL_RANK from the environment, {outer.launcher} says them"
                if by_hand
                else f"start {inner.launcher} once per host, or train.py directly under {outer.launcher}"
            )
            text = f"conflicting launchers: {inner.launcher} ({inner.said}), {outer.launcher} ({outer.said}); {fix}"
            raise (UserError if outer.rank == 0 and inner.local_rank == 0 else ReportedError)(text)
    return inner


def announce(environment: dict[str, str]) -> Place:
    """Put this process's place, and where rank 0 listens, into the environment for everything that comes after.

    Raises UserError where sources conflict, rank 0's port is taken, or the master cannot be found.
    """
    place = discover(environment)
    environment |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.ranks_here),
        "LOCAL_SIZE": str(place.ranks_here),
    }
    if not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        address, port = _master(place, environment)
        environment.setdefault("MASTER_ADDR", address)
        environment.setdefault("MASTER_PORT", str(port))
    port = _number(environment, "MASTER_PORT")
    if place.rank == 0 and "TORCHELASTIC_RUN_ID" not in environment and not is_free(port):
        raise UserError(
            f"MASTER_PORT: port {port} of {socket.gethostname()} is taken, perhaps by another run; give another "
            f"(deepspeed --master_port {free_port()}, otherwise MASTER_PORT={free_port()})"
        )
    return place


def free_port() -> int:
    """Return a port that nobody on this host listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Say whether a run could listen on a port of this host."""
    with socket.socket() as probe:
        # as the real one: what has just ended is no hindrance
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _launched(env: Mapping[str, str]) -> Place | None:
    """Return what deepspeed's or torchrun's launcher, or the user's own script, has set."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = [name for name in names if name in env]
    if not given:
        return None
    said = ", ".join(f"{name}={env[name]}" for name in given)
    if len(given) < len(names):
        missing = ", ".join(name for name in names if name not in env)
        raise UserError(f"the environment has {said} but not {missing}; unset the former, or set all three")
    rank, world, local = (_number(env, name) for name in names)
    if not (rank < world and local < world):
        raise UserError(f"the environment's {said} is no rank of a world; unset them, or set all three right")
    if "TORCHELASTIC_RUN_ID" in env:
        here = _number(env, "LOCAL_WORLD_SIZE", world)
        return Place("torchrun", rank, world, local, here, said, _number(env, "GROUP_WORLD_SIZE", 1))
    here = _number(env, "LOCAL_SIZE", _number(env, "LOCAL_WORLD_SIZE", world))
    name = "deepspeed" if "CROSS_SIZE" in env else "the environment"
    return Place(name, rank, world, local, here, said, _number(env, "CROSS_SIZE", 1))


def _mpirun(env: Mapping[str, str]) -> Place | None:
    kinds = (
        [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
        ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],  # srun may set the first two, not the last
    )
    found = [
        Place("mpirun", *(_number(env, name) for name in names), ", ".join(f"{n}={env[n]}" for n in names[:2]))
        for names in kinds
        if all(name in env for name in names)
    ]
    if len(found) == 2 and (found[0].rank, found[0].world) != (found[1].rank, found[1].world):
        raise UserError(f"conflicting launchers: mpirun ({found[0].said}), mpirun ({found[1].said}); use one MPI")
    return found[0] if found else None


def _srun(env: Mapping[str, str]) -> Place | None:
    world = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    if world < 2 or "SLURM_PROCID" not in env:
        return None
    here = _tasks_on(env.get("SLURM_STEP_TASKS_PER_NODE", str(world)), _number(env, "SLURM_NODEID", 0))
    said = f"SLURM_PROCID={env['SLURM_PROCID']}, SLURM_STEP_NUM_TASKS={world}"
    return Place("srun", _number(env, "SLURM_PROCID"), world, _number(env, "SLURM_LOCALID", 0), here, said)


def _master(place: Place, env: Mapping[str, str]) -> tuple[str, int]:
    """Return rank 0's address and port, the same on every rank."""
    if place.world == 1:
        return "127.0.0.1", free_port()
    if place.launcher == "srun":
        job = _number(env, "SLURM_JOB_ID", 0) * 64 + _number(env, "SLURM_STEP_ID", 0)
        return _first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")), LOWEST_PORT + job % PORTS
    if place.launcher == "mpirun":
        return _told_by_rank_zero(place)
    missing = " and ".join(name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in env)
    raise UserError(f"the environment has {place.said} but not {missing}; set where rank 0 listens")


def _told_by_rank_zero(place: Place) -> tuple[str, int]:
    """Let MPI carry rank 0's choice; the only use of mpi4py."""
    fix = "or set MASTER_ADDR and MASTER_PORT (mpirun -x)"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it found no MPI library
        raise UserError(f"mpirun: mpi4py cannot be used ({error}); install it, {fix}")
    if MPI.COMM_WORLD.size != place.world:
        raise UserError(
            f"mpirun: {place.said}, but mpi4py sees {MPI.COMM_WORLD.size} processes: it is built for another MPI; "
            f"reinstall it for this one, {fix}"
        )
    mine = ("127.0.0.1" if place.ranks_here == place.world else own_address(), free_port())
    return MPI.COMM_WORLD.bcast(mine, root=0)


def own_address() -> str:
    """Return the address that other hosts reach this one at: that of the default route, else of its name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but makes the kernel choose a route
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def _first_host(hosts: str) -> str:
    """Return the first name of Slurm's `node[03-07,9]-ib,other`."""
    name, number, rest = re.match(r"([^\[,]*)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", hosts).groups()
    return name + (number or "") + rest


def _tasks_on(counts: str, node: int) -> int:
    """Return the entry of Slurm's `2(x3),1` for a node's number."""
    each = [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    return each[min(node, len(each) - 1)]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, default)
    if not str(text).isdecimal():
        raise UserError(f"{name}={text} in the environment is not a number; unset it, or let the launcher set it")
    return int(text)
