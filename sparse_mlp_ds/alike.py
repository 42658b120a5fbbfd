"""What must be the same on all hosts, and who differs: `doctor` asks before a run, the pre-flight at its start."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "kornia", "safetensors", "pydantic", "psutil")
CLOCK_SECONDS = 5.0
"""By which clocks may differ."""
FIXES = {
    "python": "use the same environment on all hosts",
    "packages": "install requirements.txt on all hosts",
    "code": "bring all hosts to the same version of this folder",
    "config": "let all hosts read the same recipe and DeepSpeed JSON",
    "data": "let all hosts see the same shards and index.json",
    "device": "train on hosts with the same devices",
}
MISSING = "missing"
_READABLE = ("python", "packages", "device")  # the others are digests, which tell a reader nothing


def differences(what: str, values: Iterable[tuple[str, str]], fix: str) -> list[str]:
    """Return a line that names the hosts whose value is not that of most, none if all have the same.

    values: host and value, a host perhaps several times; `A, B, C` is compared item by item. Of two hosts that differ,
    the first is believed.
    """
    values = list(values)
    hosts_of: dict[str, set[str]] = {}
    for host, value in values:
        hosts_of.setdefault(value, set()).add(host)
    if len(hosts_of) < 2:
        return []
    usual = max(hosts_of, key=lambda value: len(hosts_of[value]))
    odd = list(dict.fromkeys(host for host, value in values if value != usual))
    others = len({host for host, _ in values}) - len(odd)
    line = f"{what} differs on {', '.join(odd)} from {others} other hosts; {fix}"
    if what in _READABLE:
        value = next(value for host, value in values if host == odd[0] and value != usual)
        line += f" ({odd[0]}: {besides(value, usual)}, others: {besides(usual, value)})"
    return [line]


def besides(value: str, other: str) -> str:
    """Return the items of `A, B, C` that another such text lacks."""
    return ", ".join(item for item in value.split(", ") if item not in other.split(", "))


def clocks(
    seconds: Mapping[str, float], unsure: Mapping[str, float] | None = None, votes: Iterable[float] = ()
) -> list[str]:
    """Return a line for each host whose clock is further than CLOCK_SECONDS from the middle one.

    seconds: what the clocks show. unsure: by how much each may have been misread. votes: clocks that only help to find
    the middle.
    """
    lines, every = [], sorted([*seconds.values(), *votes])
    for host, shown in seconds.items():
        off = shown - every[len(every) // 2]
        if abs(off) > CLOCK_SECONDS + (unsure or {}).get(host, 0.0):
            lines.append(f"{host}: its clock is {off:+.0f} s off the others'; start its time service")
    return lines


def few_devices(ranks: int, devices: int) -> str:
    """Return what to say of a host that is to run more ranks than it has devices."""
    return f"{ranks} ranks but {devices} visible devices; lower its slots"


def code(program: Path) -> str:
    """Return what tells one version of this package from another, whether or not it is a git checkout.

    program: the script that runs it, which is part of it; none need be there.
    """
    files = [program, *sorted(Path(__file__).parent.rglob("*.py"))]
    return digest("".join(digest(path.read_bytes()) for path in files if path.is_file()))


def packages() -> str:
    """Return the versions of the packages that must be the same everywhere, as `torch 2.13.0, deepspeed 0.19.8`."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def version(name: str) -> str:
    """Return an installed package's version, or MISSING."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def digest(content: str | bytes) -> str:
    """Return eight characters that tell one content from another."""
    return hashlib.sha256(os.fsencode(content)).hexdigest()[:8]
