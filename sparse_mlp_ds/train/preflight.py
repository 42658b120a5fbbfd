"""Before any model is built: are these the hosts that were asked for, and are they alike?

Every rank says what it is, all see what all say, and all come to the same verdict, so that a wrong host ends the run
within seconds instead of training something else.
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

from sparse_mlp_ds import alike, dist, front_end
from sparse_mlp_ds.errors import ReportedError, UserError
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.models import registry


@dataclass(frozen=True)
class Facts:
    """What one rank says of itself; all but the first three must be the same everywhere, or nearly."""

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


def check(job: Job) -> None:
    """Raise UserError, with a table of the differences on rank 0, unless the hosts are as asked and alike. Collective.

    It runs before NCCL is first used: what is said travels over gloo.
    """
    started = time.perf_counter()
    group = dist.control_group()
    dist.gather_objects(None, group)  # so that clocks are read at the same moment
    everyone = dist.gather_objects(_facts(job), group)
    problems = _problems(everyone) + (_disk(job) if dist.rank() == 0 else [])
    if problems and dist.rank() == 0:
        _show(everyone)  # before anybody hears of it and leaves
    problems = dist.gather_objects(problems, group)[0]
    if not problems:
        if dist.rank() == 0:
            hosts = len({facts.host for facts in everyone})
            took = time.perf_counter() - started
            say(f"pre-flight: {hosts} hosts with {len(everyone)} ranks are as asked and alike ({took:.1f} s)")
        return
    if dist.rank() == 0:
        raise UserError("\n".join(problems))
    raise ReportedError("\n".join(problems))


def _facts(job: Job) -> Facts:
    clock = time.time()
    device = dist.device()
    return Facts(
        host=socket.gethostname(),
        ranks_here=dist.ranks_here(),
        expected_nodes=front_end.nodes() if dist.local_rank() == 0 else None,
        python=platform.python_version(),
        packages=alike.packages(),
        code=alike.code(Path(sys.argv[0])),
        config=alike.digest(repr((job.recipe.model_dump(mode="json"), job.ds_config))),
        data=alike.digest(job.data_fingerprint + "".join(one.sha256 for one in job.val.shards)),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        devices=torch.cuda.device_count(),
        clock=clock,
    )


def _problems(everyone: list[Facts]) -> list[str]:
    """Return what is wrong with these ranks, one line each."""
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
        if 0 < here[0].devices < here[0].ranks_here:
            problems.append(f"{host}: {alike.few_devices(here[0].ranks_here, here[0].devices)}")
    for name, fix in alike.FIXES.items():
        problems += alike.differences(name, [(facts.host, getattr(facts, name)) for facts in everyone], fix)
    return problems + alike.clocks({facts.host: facts.clock for facts in everyone})


def _disk(job: Job) -> list[str]:
    """Return a problem if the run folder's disk has no room for one checkpoint."""
    with torch.device("meta"):
        model = registry.build(job.recipe.spec)
    needed = 16 * sum(p.numel() for p in model.parameters())  # weights, two moments, an average or a momentum net
    folder = next(path for path in (job.out.absolute(), *job.out.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [f"{folder}: {free / 2**20:.0f} MiB are free, a checkpoint takes {needed / 2**20:.0f} MiB; make room"]


def _show(everyone: list[Facts]) -> None:
    """Print one row per host, so that a difference meets the eye."""
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
