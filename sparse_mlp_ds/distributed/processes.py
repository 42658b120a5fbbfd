"""Other processes of this host, each of which may end while it is looked at."""

import contextlib
import signal

import psutil


def with_number(pid: int) -> psutil.Process | None:
    """Return the process with a number, or None if there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def command(process: psutil.Process) -> list[str]:
    """Return the words of a process's command; none if it has ended or belongs to a different user."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def name(process: psutil.Process) -> str:
    """Return the name of a process's program; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return str(process.name())
    return ""


def variables(process: psutil.Process) -> dict[str, str]:
    """Return the environment that a process was started with; empty if it has ended or belongs to a different user."""
    with contextlib.suppress(psutil.Error):
        return dict(process.environ())
    return {}


def parents(process: psutil.Process) -> list[psutil.Process]:
    """Return the process that started a process, the one that started that, and so on; none if one ends meanwhile."""
    with contextlib.suppress(psutil.Error):
        return list(process.parents())
    return []


def runs(process: psutil.Process) -> bool:
    """Say whether a process has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def send(process: psutil.Process, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a process a signal, unless it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
