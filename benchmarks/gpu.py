"""What this package does on one GPU: whether it works, how fast it is, and what a step is made of.

`python -m benchmarks.gpu` runs all sections, `--only steps,moe` some of them. A section is a list of cases, each of
which is measured by itself: what fails is printed with its traceback and costs no other case, and no case is begun
after `--minutes`. Every result is written to `--out` the moment it is there, one JSON object a line. `--toy` runs
everything at the size of the embedded digits, on any machine.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_compiled, gpu_loader, gpu_moe, gpu_steps, gpu_train, gpu_works
from benchmarks.gpu_timing import Settings, device_name
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train.engine import init_deepspeed

Case = tuple[str, Callable[[], dict]]
SECTIONS: dict[str, Callable[[Settings], Iterator[Case]]] = {
    "works": gpu_works.cases,
    "steps": gpu_steps.cases,
    "train": gpu_train.cases,
    "kernels": gpu_steps.kernel_cases,
    "products": gpu_moe.product_cases,
    "moe": gpu_moe.cases,
    "bits": gpu_works.bit_cases,
    "same": gpu_compiled.same_cases,
    "compiled": gpu_compiled.cases,
    "precisions": gpu_steps.precision_cases,
    "loader": gpu_loader.cases,
}
"""In the order in which they run, the most telling first."""


def main() -> int:
    """Run the sections asked for; return 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them (all)")
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no case is begun (20)")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.jsonl"), help="file that results are added to (gpu.jsonl)"
    )
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder of indexed tars, for loader")
    parser.add_argument("--images", type=int, default=128, help="images of a step (128)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for which each step is repeated (1)")
    parser.add_argument("--toy", action="store_true", help="tiny models and few repetitions: a test of this script")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available() and not args.toy:
        print("error: torch sees no GPU; on this machine only --toy runs", file=sys.stderr)
        return 2

    deadline, failed = time.monotonic() + 60 * args.minutes, []
    with tempfile.TemporaryDirectory() as folder, _alone(), args.out.open("a") as out:
        settings = Settings(args.toy, args.images, tuple(args.data), Path(folder), args.seconds)
        print(f"{device_name()}, torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
        for name in wanted:
            rows = []
            for row in _rows(name, settings, deadline):
                out.write(json.dumps(row) + "\n")
                out.flush()
                rows.append(row)
            _show(name, rows)
            failed += [row for row in rows if "failed" in row]
    for row in failed:
        print(f"failed: {row['section']} {row['case']}: {row['failed']}")
    return 1 if failed else 0


def _rows(section: str, settings: Settings, deadline: float) -> Iterator[dict]:
    """Measure a section's cases, one after the other, and yield what came out or what went wrong."""
    for name, case in SECTIONS[section](settings):
        row = {"section": section, "case": name, "device": device_name()}
        if time.monotonic() > deadline:
            yield row | {"skipped": "no time was left"}
            continue
        started = time.perf_counter()
        try:
            row |= case()
        except (Exception, SystemExit) as error:  # whatever it is: the other cases are to run
            traceback.print_exc()
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        row["seconds"] = round(time.perf_counter() - started, 1)
        print(f"  {section} {name}: {_line(row)}", flush=True)
        yield row
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _alone() -> Iterator[None]:
    """Join a process group of one rank under DeepSpeed, as a run on one GPU does."""
    with process_group.join():
        init_deepspeed()
        yield


def _line(row: dict) -> str:
    hidden = ("section", "case", "device")
    shown = {key: value for key, value in row.items() if key not in hidden and not isinstance(value, (dict, list))}
    return ", ".join(f"{key} {_figure(value)}" for key, value in shown.items())


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(section: str, rows: list[dict]) -> None:
    """Print one table of a section: a row for each case, a column for each single figure."""
    skipped = ("section", "case", "device", "failed")
    columns = list(
        dict.fromkeys(k for row in rows for k, v in row.items() if k not in skipped and not isinstance(v, (dict, list)))
    )
    table = Table("case", *columns, title=section, box=None, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(row["case"], *(_figure(row.get(column, "")) for column in columns))
    Console(width=190).print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
