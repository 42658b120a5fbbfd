"""Busy processes beside a benchmark, as other users of a shared machine are."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = """
import numpy
a = numpy.ones((512, 512), numpy.float32)
while True:
    a = (a @ a) / 512
"""
"""Products that use a core, its caches and its memory, as training does; each process has one thread."""


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Keep `number` processes busy while the `with` block runs."""
    one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", BUSY], env=one_thread) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
