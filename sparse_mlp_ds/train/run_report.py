"""RUN/report.html at the end of a run, on rank 0."""

from pathlib import Path

from sparse_mlp_ds.errors import one_line
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.report.write import FILE_NAME, write


def write_report(run: Path) -> None:
    """Write the report into a run folder and say so; whatever goes wrong costs a warning, never the run.

    run: the run folder.
    """
    try:
        write([run], run / FILE_NAME)
        say(f"report: {run / FILE_NAME}")
    except Exception as error:  # nothing that a page is made for is worth a run that has just reached its end
        say(f"WARNING: {run / FILE_NAME}: the report is not written ({one_line(error, 200)}); nothing else is missing")
