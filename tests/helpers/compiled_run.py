"""Run train.py with compiled blocks on the CPU: experts in grouped products as on a GPU, graphs without kernels.

    python -m tests.helpers.compiled_run FILE ARGUMENTS OF train.py

FILE gets JSON: graph breaks by reason, and for each phase of the run its stage, its step and the graphs made by then.
"""

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.train import compiled
from sparse_mlp_ds.train.main import main
from sparse_mlp_ds.watchdog.client import Watch


def follow(seen: list[dict]) -> None:
    """Note each phase that the loop tells its watchdog."""
    tell = Watch.at

    def at(watch: Watch, phase: str, stage: str | None = None, step: int | None = None) -> None:
        last = seen[-1] if seen else {"stage": None, "step": 0}
        graphs = counters["stats"]["unique_graphs"]
        step = last["step"] if step is None else step
        seen.append({"phase": phase, "stage": stage or last["stage"], "step": step, "graphs": graphs})
        tell(watch, phase, stage, step)  # type: ignore[arg-type]

    Watch.at = at  # type: ignore[method-assign]


def run(file: Path, arguments: list[str]) -> int:
    """Run and return the exit code."""
    compiled.BACKEND = "aot_eager"
    grouped.applies = lambda rows, experts: rows.dtype == torch.bfloat16 and grouped.able(experts)
    seen: list[dict] = []
    follow(seen)
    code = main(["--set", "train.compile=on", *arguments])
    last = {"phase": "end", "graphs": counters["stats"]["unique_graphs"]}
    file.write_text(json.dumps({"breaks": counters["graph_break"], "phases": [*seen, last]}))
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
