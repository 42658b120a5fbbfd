"""Top-1 of trained models over the capacity of their experts: which items may be left out, and who is served first.

Each model is measured on all held-out images at several capacity factors, where the experts take items by importance
(the largest router probability first) or by position. FILE gets one JSON object per model, factor and priority; a file
that exists is gone on with.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import USAGE, print_error
from sparse_mlp_ds.sweep import plot

PRIORITIES = ("importance", "position")


def main() -> None:
    """Measure what FILE has not got yet, and draw all that it has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="RUN", help="a run or an export, named SETTING_seed-N")
    parser.add_argument("--data", help="held-out images, a data set with labels")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5])
    parser.add_argument("--file", type=Path, required=True, metavar="FILE")
    parser.add_argument("--plot", type=Path, help="draw the results into this SVG file")
    args = parser.parse_args()
    if args.models and args.data is None:
        parser.error("--data: name the held-out images on which the models are measured")
    known = [json.loads(line) for line in args.file.read_text().splitlines()] if args.file.exists() else []
    done = {(one["model"], one["factor"], one["priority"]) for one in known}
    for path in args.models:
        for factor in [None, *args.factors]:
            for priority in PRIORITIES if factor is not None else PRIORITIES[:1]:
                if (Path(path).name, factor, priority) not in done:
                    known.append(measure(path, args.data, factor, priority))
                    with args.file.open("a") as file:
                        file.write(json.dumps(known[-1]) + "\n")
                    print(known[-1], flush=True)
    if args.plot:
        plot.draw(lambda: draw(known), args.plot)


def measure(path: str, data: str, factor: float | None, priority: str) -> dict[str, Any]:
    """Return the top-1 of one model at one capacity, by `sparse-mlp-ds evaluate`; no factor: nothing is left out.

    Where the command refuses something, this one ends with its line and its exit code.
    """
    command = [sys.executable, "-m", "sparse_mlp_ds.cli.main", "evaluate", path, data, "--json", "--priority", priority]
    command += [] if factor is None else ["--capacity-factor", str(factor)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    if "top1" not in found:
        print_error(f"{path}: a model that restores masked tokens has no top-1; give a classifier")
        sys.exit(USAGE)
    of = {"model": Path(path).name, "factor": factor, "priority": priority}
    return of | {"top1": found["top1"], "images": found["images"]}


def draw(known: list[dict[str, Any]]) -> Any:
    """Draw a curve for each setting and priority, the mean over seeds; dotted: nothing is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(setting(one) for one in known)):
        own, color = [one for one in known if setting(one) == name], f"C{number}"
        everything = [100 * one["top1"] for one in own if one["factor"] is None]
        axes.axhline(sum(everything) / len(everything), color=color, linewidth=0.8, linestyle=":")
        for priority, style in zip(PRIORITIES, ("-", "--"), strict=True):
            means = mean_by_factor([one for one in own if one["priority"] == priority and one["factor"] is not None])
            label = f"{name}, by {priority}"
            axes.plot(list(means), list(means.values()), style, marker="o", markersize=3, color=color, label=label)
    axes.set(xlabel="capacity factor", ylabel="top-1, %")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def setting(one: dict[str, Any]) -> str:
    """Return the name of a run without its seed."""
    return str(one["model"]).split("_seed-")[0]


def mean_by_factor(own: list[dict[str, Any]]) -> dict[float, float]:
    """Return capacity factor -> mean top-1 in %."""
    by_factor: dict[float, list[float]] = {}
    for one in sorted(own, key=lambda one: one["factor"]):
        by_factor.setdefault(one["factor"], []).append(100 * one["top1"])
    return {factor: sum(values) / len(values) for factor, values in by_factor.items()}


if __name__ == "__main__":
    main()
