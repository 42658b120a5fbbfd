"""Seconds from the launch to the first training step, and to the steps between that can be seen from outside.

Beside them, in turn: the same command for a program that does nothing but import torch and add up one number.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).parents[1]
MARKS = {"ranks spawned": "spawned with command", "plan printed": "ranks ", "first step": "pretrain 1/"}
"""What is timed -> text of the first line that shows it."""
TRAINER = [str(REPOSITORY / "train.py"), "--ds_config", str(REPOSITORY / "ds_configs/moe.json")]
TRAINER += ["--set", "train.max_steps=1"]
BARE = """
import torch
torch.distributed.init_process_group("gloo")
torch.distributed.all_reduce(torch.ones(1))
print("added up", flush=True)
"""


def main() -> None:
    """Time several launches and print the median of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--launches", type=int, default=3, help="launches; the first one, with cold caches, is not counted"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    launches = [
        _launch(args.ranks, TRAINER, MARKS) | _launch(args.ranks, ["bare.py"], {"nothing but torch": "added up"})
        for _ in range(args.launches)
    ][1 if args.launches > 1 else 0 :]
    rows = {part: [launch[part] for launch in launches] for part in launches[0]}
    if args.json:
        print(json.dumps(rows))
        return
    table = Table(
        "until", "median s", "min s", "max s", title=f"seconds since the command was typed, {args.ranks} ranks"
    )
    for part, seconds in rows.items():
        table.add_row(part, f"{statistics.median(seconds):.1f}", f"{min(seconds):.1f}", f"{max(seconds):.1f}")
    Console().print(table)


def _launch(ranks: int, program: list[str], marks: dict[str, str]) -> dict[str, float]:
    """Return the seconds until lines were printed. marks: what is timed -> text of the first line that shows it."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks), *program]
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare.py").write_text(BARE)
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout:
                for part, mark in marks.items():
                    if mark in line and part not in seen:
                        seen[part] = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"the launch ended with exit code {process.returncode}")
    return seen


if __name__ == "__main__":
    main()
