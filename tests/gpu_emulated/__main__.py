"""Run the project's train.py on emulated GPUs, and count what its steps ask of the device.

    python -m tests.gpu_emulated [--count STEPS] [--to FILE] [--copies-take SECONDS] -- ARGUMENTS OF train.py

STEPS are numbers of steps of the run, separated by commas. Rank 0 writes JSON to FILE: step -> kind -> place -> number.
Exit code: that of train.py, or 3 if a GPU would have refused something. It also runs under `torchrun`.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # real ones stay out of it

import torch  # noqa: E402

from tests.gpu_emulated import nccl, runtime, streams  # noqa: E402
from tests.gpu_emulated.counts import counts  # noqa: E402
from tests.gpu_emulated.device import emulated, refusals  # noqa: E402

REFUSED = 3


class Steps:
    """Counts chosen steps, from where the loop asks for a step's data to where it asks for the next one's."""

    def __init__(self, chosen: set[int]):
        self.chosen = chosen
        self.counted: dict[int, dict] = {}
        self._now: int | None = None

    def follow(self) -> None:
        """Listen to what the loop tells its watchdog."""
        from sparse_mlp_ds.watchdog.client import Watch

        tell = Watch.at

        def at(watch: Watch, phase: str, stage: str | None = None, step: int | None = None) -> None:
            if phase == "data" or phase in ("start", "evaluate"):
                self._turn(step if phase == "data" else None)
            tell(watch, phase, stage, step)  # type: ignore[arg-type]

        Watch.at = at  # type: ignore[method-assign]

    def _turn(self, step: int | None) -> None:
        if self._now is not None:
            self.counted[self._now] = counts.end()
        self._now = step if step in self.chosen else None
        torch.autograd.set_detect_anomaly(self._now is not None, check_nan=False)
        if self._now is not None:
            counts.begin()


def main(arguments: list[str]) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_emulated")
    parser.add_argument("--count", default="")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--copies-take", type=float, default=0.0, help="see streams.copies_take")
    parser.add_argument("rest", nargs="*")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Anomaly Detection")
    runtime.install()
    nccl.install()
    streams.copies_take = args.copies_take
    from sparse_mlp_ds.train.main import main as train

    steps = Steps({int(number) for number in args.count.split(",") if number})
    steps.follow()
    with emulated():
        code = train(args.rest)
    if args.to and os.environ.get("RANK", "0") == "0":
        args.to.write_text(json.dumps(steps.counted))
    return code or (REFUSED if refusals else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
