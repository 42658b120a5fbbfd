"""What a host finds out about itself. This takes a moment only: torch is imported only where there are devices."""

import os
import platform
import re
import resource
import shutil
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparse_mlp_ds.distributed import consistency, host, network
from sparse_mlp_ds.errors import one_line

MARK = "sparse-mlp-ds doctor: "
"""Text before a host's answer, on the same line."""
ABSENT = "absent"
"""In place of the digest of a file that is not there."""
SHARED_MEMORY = Path("/dev/shm")
"""Folder of the shared memory through which loader processes hand over batches."""
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_DRIVER, _DRIVER_VERSION = Path("/proc/driver/nvidia/version"), re.compile(r"Module.*?\s(\d+\.\d[\d.]*)")
_CALL_SECONDS = 3.0


@dataclass(frozen=True)
class Request:
    """What the asking host wants to know in addition to what every host reports."""

    files: tuple[str, ...] = ()
    """Files to compare, as paths from the current folder."""
    marker: str = ""
    """A file that the asking host has just made in the shared folder; empty if no other host asks."""
    call: int = 0
    """Port at which the asking host listens for a call back; 0 if none."""
    port: int = 29500
    """Port at which rank 0 would listen."""


@dataclass(frozen=True)
class DeviceFacts:
    """The accelerators of a host, as a process in the current environment sees them."""

    device: str
    """Name of the first device; `cpu` on a host without devices."""
    devices: int
    """Number of devices that a process sees, after CUDA_VISIBLE_DEVICES."""
    driver: str
    """Version of CUDA or ROCm, and of the driver; empty on a host without devices."""
    blind: bool
    """Whether the system has devices but torch sees none."""
    torch_error: str
    """Why torch cannot be imported; empty if it can be, or did not need to be."""
    torch_seconds: float | None
    """Seconds to import torch and find the devices; None if there was no need."""


_NO_DEVICE = DeviceFacts("cpu", 0, "", False, "", None)


@dataclass(frozen=True)
class HostFacts(DeviceFacts):
    """A host, as a process in the current folder sees it."""

    host: str
    """The name that the host calls itself."""
    python: str
    """Version of Python."""
    packages: str
    """Versions of the packages that must be the same on all hosts, as `torch 2.13.0, deepspeed 0.19.8`."""
    extras: str
    """Versions of packages that only some runs need, in the same form."""
    code: str
    """Digest of this package and train.py."""
    files: dict[str, str]
    """Digest of each requested file by its path, or ABSENT."""
    cores: int
    """Number of cores that a process may use."""
    shared_memory: int | None
    """Size of /dev/shm in bytes; None on systems without it."""
    disk: int
    """Free bytes in the folder of the runs."""
    writable: bool
    """Whether the folder of the runs can be written to."""
    open_files: int | None
    """Number of files that a process may have open; None if there is no limit."""
    port_taken: bool
    """Whether a process listens on the port of rank 0."""
    marker_seen: bool | None
    """Whether the asking host's file is visible here; None if the request names none."""
    caller: str
    """Address of the asking host as seen from here; empty if no host has asked over ssh."""
    call_error: str
    """Why the asking host could not be reached at that address; empty if it could."""
    seconds: float
    """Seconds to find all this out."""
    clock: float
    """Time in seconds since 1970, read last."""


def runs_folder() -> Path:
    """Return the folder that the hosts have to share, where runs are written: `runs` if it exists, else this folder."""
    return Path("runs" if Path("runs").is_dir() else ".")


def look(request: Request) -> HostFacts:
    """Examine this host; takes a moment, or on a host with devices as long as torch takes to be imported."""
    started = time.monotonic()
    caller, call_error = _call_back(request.call)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return HostFacts(
        **asdict(_device()),
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=consistency.packages(),
        extras=", ".join(f"{name} {consistency.version(name)}" for name in ("mpi4py", "wandb")),
        code=consistency.code(Path("train.py")),
        files={path: _digest(path) for path in request.files},
        cores=host.cores(),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        disk=shutil.disk_usage(runs_folder()).free,
        writable=os.access(runs_folder(), os.W_OK),
        open_files=None if open_files == resource.RLIM_INFINITY else open_files,
        port_taken=not network.is_free(request.port),
        marker_seen=Path(request.marker).exists() if request.marker else None,
        caller=caller,
        call_error=call_error,
        seconds=time.monotonic() - started,
        clock=time.time(),
    )


def _device() -> DeviceFacts:
    if not any(os.path.exists(path) for path in _DEVICE_FILES):
        return _NO_DEVICE
    started = time.monotonic()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that torch loads
        return replace(_NO_DEVICE, torch_error=one_line(error))
    if not torch.cuda.is_available():
        return replace(_NO_DEVICE, blind=True, torch_seconds=time.monotonic() - started)
    driver = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if _DRIVER.exists() and (match := _DRIVER_VERSION.search(_DRIVER.read_text(encoding="utf-8"))):
        driver += f", driver {match[1]}"
    return DeviceFacts(
        device=torch.cuda.get_device_name(0),
        devices=torch.cuda.device_count(),
        driver=driver,
        blind=False,
        torch_error="",
        torch_seconds=time.monotonic() - started,
    )


def _call_back(port: int) -> tuple[str, str]:
    """Return the asking host's address as seen from here, and why it cannot be reached there; empty if not asked."""
    caller = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    if not (port and caller):
        return "", ""
    try:
        socket.create_connection((caller, port), _CALL_SECONDS).close()
    except OSError as error:
        return caller, error.strerror or str(error)
    return caller, ""


def _digest(path: str) -> str:
    try:
        return consistency.digest(Path(path).read_bytes())
    except OSError:
        return ABSENT
