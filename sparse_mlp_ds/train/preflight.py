"""The check before any model is built: are these the hosts that were asked for, and are they set up equally?

All ranks exchange what they know of their host and come to the same result, so that a host with a different setup ends
the run within seconds instead of training something different.
"""

import platform
import shutil
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sparse_mlp_ds import files
from sparse_mlp_ds.distributed import comm, consistency, deepspeed_command, process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.train.job import Job


@dataclass(frozen=True)
class Facts:
    """What one rank reports of itself and its host; all but the first three must be equal."""

    host: str
    ranks_here: int
    expected_nodes: int | None
    python: str
    packages: str
    code: str
    config: str
    data: str
    device: str
    devices: int
    clock: float
    compiles: bool = False
    gpu: str = ""
    """What tells this rank's GPU from every other one; none on a CPU."""


def check(job: Job) -> list[Facts]:
    """Raise UserError unless the hosts are as asked and set up equally; rank 0 prints how they differ. Collective.

    Returns what every rank reports, in rank order. It runs before NCCL is first used: its messages travel over gloo.
    """
    started = time.perf_counter()
    group = process_group.control_group()
    comm.gather_objects(None, group)  # so that clocks are read at the same moment
    everyone = comm.gather_objects(_facts(job), group)
    problems = _problems(everyone) + (_disk(job) if process_group.rank() == 0 else [])
    if problems and process_group.rank() == 0:
        _show(everyone)  # before anybody hears of it and leaves
    problems = comm.gather_objects(problems, group)[0]
    if not problems:
        if process_group.rank() == 0:
            hosts = len({facts.host for facts in everyone})
            took = time.perf_counter() - started
            say(f"pre-flight: {hosts} hosts with {len(everyone)} ranks are as asked and alike ({took:.1f} s)")
        return everyone
    raise comm.printed_by_rank_zero(UserError("\n".join(problems)))


def _facts(job: Job) -> Facts:
    clock = time.time()
    device = process_group.device()
    return Facts(
        host=socket.gethostname(),
        ranks_here=process_group.local_world_size(),
        expected_nodes=deepspeed_command.nodes() if process_group.local_rank() == 0 else None,
        python=platform.python_version(),
        packages=consistency.packages(),
        code=consistency.code(Path(sys.argv[0])),
        config=consistency.digest(repr((job.recipe.model_dump(mode="json"), job.ds_config.raw))),
        data=consistency.digest(
            repr((job.data_fingerprint, [one.sha256 for one in job.val.shards], job.classes, job.val.classes))
        ),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        devices=torch.cuda.device_count(),
        clock=clock,
        compiles=job.compiles,
        gpu=str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "",
    )


def _problems(everyone: list[Facts]) -> list[str]:
    """Return one line for each thing that is wrong with these ranks."""
    problems = []
    hosts = list(dict.fromkeys(facts.host for facts in everyone))
    expected = max((facts.expected_nodes or 0 for facts in everyone), default=0)
    if expected and expected != len(hosts):
        problems.append(
            f"{expected} hosts were asked for, {len(hosts)} joined: {', '.join(hosts)}; "
            "bring the hostfile (or the allocation) and --num_nodes into agreement"
        )
    for host in hosts:
        here = [facts for facts in everyone if facts.host == host]
        if len(here) != here[0].ranks_here:
            problems.append(f"{host}: {here[0].ranks_here} ranks were started, {len(here)} joined; mend its slots")
        gpus = {facts.gpu for facts in here if facts.gpu}
        if gpus and len(gpus) < len(here):
            problems.append(f"{host}: {consistency.few_devices(len(here), len(gpus))}")
    for name, fix in consistency.FIXES.items():
        problems += consistency.differences(name, [(facts.host, str(getattr(facts, name))) for facts in everyone], fix)
    return problems + consistency.clocks({facts.host: facts.clock for facts in everyone})


def _disk(job: Job) -> list[str]:
    """Return one line if the run folder's disk has no room for a checkpoint, else none."""
    with torch.device("meta"):
        model = registry.build(job.recipe.spec)
    needed = 16 * sum(p.numel() for p in model.parameters())  # weights, two moments, an average or a momentum net
    folder = files.nearest(job.out)
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [f"{folder}: {free / 2**20:.0f} MiB are free, a checkpoint takes {needed / 2**20:.0f} MiB; make room"]


def _show(everyone: list[Facts]) -> None:
    """Print a table with one row per host, in which a difference is easy to see."""
    table = Table(title="pre-flight", box=None, padding=(0, 1, 0, 0))
    hosts = {facts.host: facts for facts in everyone}
    first = next(iter(hosts.values()))
    columns = ["host", "ranks_here", "python", "code", "config", "data", "device", "devices", "clock", "packages"]
    for name in columns:
        table.add_column(name.replace("_", " "))
    for facts in hosts.values():
        row = asdict(facts) | {"clock": f"{facts.clock - first.clock:+.1f} s"}
        row["packages"] = "as the first" if facts != first and facts.packages == first.packages else facts.packages
        table.add_row(*(str(row[name]) for name in columns))
    Console(stderr=True, width=160).print(table)
