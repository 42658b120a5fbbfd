"""Writes the report of a run into its folder, or of several runs into a file."""

from collections.abc import Sequence
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.report import one_run
from sparse_mlp_ds.report.run_files import read

FILE_NAME = "report.html"
"""Name of the report in a run folder."""


def write(runs: Sequence[Path], out: Path) -> int:
    """Write the report of one run, or the comparison of several, and return its size in bytes.

    Args:
        runs: The run folders.
        out: The file to write; it is replaced as a whole.

    Raises:
        UserError: A folder is not that of a run, or has no records.
        OSError: The file cannot be written.
    """
    found = [read(path) for path in runs]
    if len(found) == 1:
        text = one_run.write(found[0])
    else:
        from sparse_mlp_ds.report import comparison  # whose imports take seconds

        text = comparison.write(found)
    content = text.encode("utf-8", errors="replace")  # a path may hold bytes that are no text
    files.replace(out, content)
    return len(content)
