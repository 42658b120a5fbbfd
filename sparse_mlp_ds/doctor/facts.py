"""What a host says of itself. Up in a moment: torch is imported only where a device is."""

import os
import platform
import re
import resource
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds import alike, discovery, host

MARK = "sparse-mlp-ds doctor: "
"""Before the answer on its line."""
ABSENT = "absent"
"""In place of a file's digest."""
SHARED_MEMORY = Path("/dev/shm")
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_DRIVER, _DRIVER_VERSION = Path("/proc/driver/nvidia/version"), re.compile(r"Module.*?\s(\d+\.\d[\d.]*)")
_CALL_SECONDS = 3.0


@dataclass(frozen=True)
class Request:
    """What a host is asked beyond what it says anyway."""

    files: tuple[str, ...] = ()
    """To be compared, paths as seen from the current folder."""
    marker: str = ""
    """A file that the asking host has just made; empty if nobody asks from elsewhere."""
    call: int = 0
    """A port on which the asking host listens; 0 if none."""
    port: int = 29500
    """Where rank 0 would listen."""


@dataclass(frozen=True)
class Facts:
    """A host, seen by a process in the current folder."""

    host: str
    """What it calls itself."""
    python: str
    packages: str
    """Those that must be the same everywhere: `torch 2.13.0, deepspeed 0.19.8`."""
    extras: str
    """The same of packages that only some runs need."""
    code: str
    files: dict[str, str]
    """Digest by path, or ABSENT."""
    device: str
    """Name of the first device, `cpu` without any."""
    devices: int
    """That a process sees, CUDA_VISIBLE_DEVICES applied."""
    driver: str
    """CUDA's version and the driver's; empty without devices."""
    blind: bool
    """Whether the system has devices of which torch sees none."""
    torch_error: str
    """Why torch cannot be imported; empty if it can, or was not needed."""
    torch_seconds: float | None
    """For importing torch and finding the devices; None if there was no need."""
    cores: int
    shared_memory: int | None
    """Size of /dev/shm, bytes; None on systems without."""
    disk: int
    """Free where runs are written to, bytes."""
    writable: bool
    """Whether that folder is."""
    open_files: int | None
    """That a process may have; None if there is no limit."""
    port_taken: bool
    marker_seen: bool | None
    """Whether the asking host's file is here; None if it told of none."""
    caller: str
    """Address of the asking host as seen from here; empty if nobody called over ssh."""
    call_error: str
    """Why the asking host could not be reached there; empty if it could."""
    seconds: float
    """For finding all this out."""
    clock: float
    """Seconds since 1970, read last."""


def runs_folder() -> Path:
    """Return where runs are written to, which is what hosts have to share: `runs` if it is there, else this folder."""
    return Path("runs" if Path("runs").is_dir() else ".")


def look(request: Request) -> Facts:
    """Return this host's facts; takes a moment, and where there are devices as long as torch takes to be imported."""
    started = time.monotonic()
    device = _device()
    caller, call_error = _call_back(request.call)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Facts(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=alike.packages(),
        extras=", ".join(f"{name} {alike.version(name)}" for name in ("mpi4py", "wandb")),
        code=alike.code(Path("train.py")),
        files={path: _digest(path) for path in request.files},
        **device,
        cores=host.cores(),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None,
        disk=shutil.disk_usage(runs_folder()).free,
        writable=os.access(runs_folder(), os.W_OK),
        open_files=None if open_files == resource.RLIM_INFINITY else open_files,
        port_taken=not discovery.is_free(request.port),
        marker_seen=Path(request.marker).exists() if request.marker else None,
        caller=caller,
        call_error=call_error,
        seconds=time.monotonic() - started,
        clock=time.time(),
    )


def _device() -> dict[str, object]:
    found = {"device": "cpu", "devices": 0, "driver": "", "blind": False, "torch_error": "", "torch_seconds": None}
    if not any(os.path.exists(path) for path in _DEVICE_FILES):
        return found
    started = time.monotonic()
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library that it loads
        return found | {"torch_error": " ".join(str(error).split()) or type(error).__name__}
    if torch.cuda.is_available():
        driver = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        if _DRIVER.exists() and (match := _DRIVER_VERSION.search(_DRIVER.read_text())):
            driver += f", driver {match[1]}"
        found |= {"device": torch.cuda.get_device_name(0), "devices": torch.cuda.device_count(), "driver": driver}
    return found | {"blind": not found["devices"], "torch_seconds": time.monotonic() - started}


def _call_back(port: int) -> tuple[str, str]:
    """Return the address that the asking host has from here, and why it cannot be reached there, if so."""
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
        return alike.digest(Path(path).read_bytes())
    except OSError:
        return ABSENT
