"""Records WideNet's learning rate by step, from its authors' code. Needs tensorflow 2.15."""

import ast

import numpy as np
import tensorflow as tf

from tests.references.make import support

EPOCHS, WARMUP_EPOCHS, STEPS_PER_EPOCH, PEAK, LAST = 300, 30, 312, 0.01, 1e-5


def main() -> None:
    """Run the schedule alone: the script around it starts training when it is imported."""
    path = support.checkout(__doc__)
    source = (path / "widenet" / "train.py").read_text()
    wanted = [node for node in ast.parse(source).body if getattr(node, "name", "") == "CustomLinearSchedule"]
    names = {"tf": tf}
    exec(compile(ast.Module(wanted, []), "train.py", "exec"), names)
    warmup, total = WARMUP_EPOCHS * STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH
    schedule = names["CustomLinearSchedule"](PEAK, warmup, total, LAST)
    steps = np.union1d(np.linspace(0, total, 97).round().astype(int), np.arange(-2, 3) + warmup)
    found = {
        "steps": steps,
        "total and warm-up": np.array([total, warmup]),
        "peak and last": np.array([PEAK, LAST]),
        "rates": np.array([float(schedule(int(step))) for step in steps]),
    }
    about = "Learning rate by step: linear warm-up from 1e-5, linear decay back to it."
    repository = "https://github.com/XueFuzhao/WideNet_Code"
    support.record("widenet_schedule", found, about, repository, "widenet", path, ["tensorflow-cpu"])


if __name__ == "__main__":
    main()
