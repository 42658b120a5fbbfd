"""What must be the same on all hosts, and which hosts differ; for `doctor` before a run and the pre-flight in it."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import sparse_mlp_ds

PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "kornia", "safetensors", "pydantic", "psutil")
"""Packages of which all hosts must have the same version."""
CLOCK_SECONDS = 5.0
"""Largest difference between a host's clock and the median clock."""
FIXES = {
    "python": "use the same environment on all hosts",
    "packages": "install requirements.txt on all hosts",
    "code": "bring all hosts to the same version of this folder",
    "config": "let all hosts read the same recipe and DeepSpeed JSON",
    "data": "let all hosts see the same shards and index.json",
    "device": "train on hosts with the same devices",
    "compiles": "install Triton and a C compiler on all hosts, or set train.compile: off",
}
"""What must be the same on all hosts, and what to do where it differs."""
MISSING = "missing"
"""In place of the version of a package that is not installed."""
_READABLE = ("python", "packages", "device")  # the other values are digests, which tell a reader nothing


def differences(what: str, values: Iterable[tuple[str, str]], fix: str) -> list[str]:
    """Return a line that names the hosts whose value differs from most hosts' value, or no line if all are the same.

    If two values are equally frequent, the one that comes first counts as usual.

    Args:
        what: Name of the compared property.
        values: Pairs of host and value, with several pairs for a host of several ranks. Of values `A, B, C`, the line
            shows only the items that differ.
        fix: What the user should do about a difference.
    """
    values = list(values)
    hosts_of: dict[str, set[str]] = {}
    for host, value in values:
        hosts_of.setdefault(value, set()).add(host)
    if len(hosts_of) < 2:
        return []
    usual = max(hosts_of, key=lambda value: len(hosts_of[value]))
    different = list(dict.fromkeys(host for host, value in values if value != usual))
    others = len({host for host, _ in values}) - len(different)
    line = f"{what} differs on {', '.join(different)} from {others} other hosts; {fix}"
    if what in _READABLE:
        value = next(value for host, value in values if host == different[0] and value != usual)
        line += f" ({different[0]}: {items_only_in(value, usual)}, others: {items_only_in(usual, value)})"
    return [line]


def items_only_in(value: str, other: str) -> str:
    """Return the items of a text `A, B, C` that a second such text lacks."""
    return ", ".join(item for item in value.split(", ") if item not in other.split(", "))


def clocks(
    seconds: Mapping[str, float], uncertainty: Mapping[str, float] | None = None, votes: Iterable[float] = ()
) -> list[str]:
    """Return a line for each host whose clock differs from the median clock by more than CLOCK_SECONDS.

    Args:
        seconds: What each host's clock shows.
        uncertainty: Largest error, in seconds, with which a host's clock was read; 0 for hosts that are not in it.
        votes: What additional clocks show, which count for the median only.
    """
    lines, every = [], sorted([*seconds.values(), *votes])
    for host, shown in seconds.items():
        off = shown - every[len(every) // 2]
        if abs(off) > CLOCK_SECONDS + (uncertainty or {}).get(host, 0.0):
            lines.append(f"{host}: its clock is {off:+.0f} s off the others'; start its time service")
    return lines


def few_devices(ranks: int, devices: int) -> str:
    """Return the message about a host that is to run more ranks than it has devices."""
    return f"{ranks} ranks but {devices} visible devices; lower its slots"


def code_files(program: Path) -> list[Path]:
    """Return the files that make up a version of the code: this package's modules, and the script that runs them.

    program: the script; it is left out if there is no such file.
    """
    modules = sorted(Path(sparse_mlp_ds.__file__).parent.rglob("*.py"))
    return [path for path in (program, *modules) if path.is_file()]


def code(program: Path) -> str:
    """Return a digest that is different for each version of the code, whether or not it is a git checkout.

    program: the script that runs the package, see `code_files`.
    """
    return digest("".join(digest(path.read_bytes()) for path in code_files(program)))


def packages() -> str:
    """Return the installed versions of PACKAGES, as `torch 2.13.0, deepspeed 0.19.8`."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def version(name: str) -> str:
    """Return the version of an installed package, or MISSING."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def digest(content: str | bytes) -> str:
    """Return the first eight hexadecimal digits of the content's SHA-256."""
    return hashlib.sha256(os.fsencode(content)).hexdigest()[:8]
