"""`sparse-mlp-ds report`: how a run went, or how several compare, as one file that a browser opens."""

import argparse
from pathlib import Path
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError


def add_to(commands: Any) -> None:
    """Add `report` to the command line. commands: argparse's sub-parsers."""
    report = commands.add_parser(
        "report",
        help="write how a run went, or how several compare, as one HTML file",
        description="Writes an HTML file that needs nothing else: of one run its curves, results, classes, experts, "
        "time, checkpoints and provenance; of several runs their curves over the same axes and what differs in their "
        "recipes. A run may still be going on. docs/monitoring.md explains the parts.",
    )
    report.add_argument("runs", type=as_path, nargs="+", metavar="RUN", help="folder of a run")
    report.add_argument(
        "--out",
        type=as_path,
        metavar="FILE",
        help="HTML file to write (default: report.html in the run folder; of several runs comparison.html here)",
    )
    report.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.report.write import FILE_NAME, write

    out = args.out or (args.runs[0] / FILE_NAME if len(args.runs) == 1 else Path("comparison.html"))
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"--out {out}: a report is an HTML file; give a name that ends in .html")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file")
    if args.out:
        files.check_writable(out.parent, "--out")
    size = write(args.runs, out)
    print(f"wrote {out} ({size / 1e6:.1f} MB)")
