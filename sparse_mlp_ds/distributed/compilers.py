"""Whether this host has what `torch.compile` needs beside torch: Triton and a C compiler, or on CPUs a C++ compiler."""

import os
import shutil
import subprocess
import sysconfig

from torch.utils._triton import has_triton


def lacking(gpu: bool) -> str | None:
    """Return what this host lacks and how to get it; None if it can compile.

    gpu: whether the kernels are for a GPU. Triton writes these, and a C compiler builds what launches them.
    """
    if gpu and not has_triton():
        return "there is no Triton that works with this GPU; install the package triton"
    kind, variable, names = ("C", "CC", ("gcc", "clang")) if gpu else ("C++", "CXX", ("g++",))
    names = (os.environ[variable],) if os.environ.get(variable) else names
    compiler = next((name for name in names if shutil.which(name)), None)
    if compiler is None:
        return f"there is no {kind} compiler ({' or '.join(names)}); install one"
    if (reason := _complaint(compiler, kind)) is None:
        return None
    return f"the {kind} compiler {compiler} cannot use Python's headers ({reason}); install both, as in python3-dev"


def _complaint(compiler: str, kind: str) -> str | None:
    """Return what a compiler says against a file that includes Python's header; None if it compiles."""
    command = [compiler, "-x", kind.lower(), "-c", "-", "-o", os.devnull, f"-I{sysconfig.get_path('include')}"]
    try:
        done = subprocess.run(command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    said = done.stderr.splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in said if "error" in line), said[-1]).strip()
