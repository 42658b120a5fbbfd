"""Before any model is built: are these the hosts that were asked for, and are they alike?

Every rank says what it is, all see what all say, and all come to the same verdict, so that a wrong host ends the run
within seconds instead of training something else.
"""

import hashlib
import os
import platform
import shutil
import socket
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import sparse_mlp_ds
from sparse_mlp_ds import dist, front_end
from sparse_mlp_ds.errors import ReportedError, UserError
from sparse_mlp_ds.job import Job
from sparse_mlp_ds.models import registry

PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "kornia", "safetensors", "pydantic", "psutil")
CLOCK_SECONDS = 5.0
"""By which clocks may differ."""


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
    group = dist.control_group()
    everyone = dist.gather_objects(_facts(job), group)
    problems = _problems(everyone) + (_disk(job) if dist.rank() == 0 else [])
    if problems and dist.rank() == 0:
        _show(everyone)  # before anybody hears of it and leaves
    problems = dist.gather_objects(problems, group)[0]
    if not problems:
        return
    if dist.rank() == 0:
        raise UserError("\n".join(problems))
    raise ReportedError("\n".join(problems))


def _facts(job: Job) -> Facts:
    dist.barrier()  # so that clocks are read at the same moment
    clock = time.time()
    device = dist.device()
    return Facts(
        host=socket.gethostname(),
        ranks_here=dist.ranks_here(),
        expected_nodes=front_end.nodes() if dist.local_rank() == 0 else None,
        python=platform.python_version(),
        packages=" ".join(f"{name} {_version(name)}" for name in PACKAGES),
        code=_code(),
        config=_digest(repr((job.recipe.model_dump(mode="json"), job.ds_config))),
        data=_digest(job.data_fingerprint + "".join(one.sha256 for one in job.val.shards)),
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
            problems.append(
                f"{host}: {here[0].ranks_here} ranks but {here[0].devices} visible devices; lower its slots"
            )
    for name, fix in (
        ("python", "use the same environment on all hosts"),
        ("packages", "install requirements.txt on all hosts"),
        ("code", "bring all hosts to the same version of this folder"),
        ("config", "let all hosts read the same recipe and DeepSpeed JSON"),
        ("data", "let all hosts see the same shards and index.json"),
        ("device", "train on hosts with the same devices"),
    ):
        values: dict[str, list[str]] = {}
        for facts in everyone:
            values.setdefault(getattr(facts, name), [])
            if facts.host not in values[getattr(facts, name)]:
                values[getattr(facts, name)].append(facts.host)
        if len(values) > 1:
            odd = min(values.values(), key=len)
            problems.append(f"{name} differs on {', '.join(odd)} from {len(hosts) - len(odd)} other hosts; {fix}")
    clocks = {facts.host: facts.clock for facts in everyone}
    middle = sorted(clocks.values())[len(clocks) // 2]
    for host, clock in clocks.items():
        if abs(clock - middle) > CLOCK_SECONDS:
            problems.append(f"{host}: its clock is {clock - middle:+.0f} s off the others'; start its time service")
    return problems


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


def _code() -> str:
    """Return what tells one version of this program from another, whether or not it is a git checkout."""
    package = Path(sparse_mlp_ds.__file__).parent
    files = [Path(sys.argv[0]), *sorted(package.rglob("*.py"))]
    return _digest("".join(_digest(path.read_bytes()) for path in files if path.is_file()))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(os.fsencode(content)).hexdigest()[:8]
