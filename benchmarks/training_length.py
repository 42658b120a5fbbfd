"""What settings gain over the first one, over the length of training: the same comparison in several results files.

Each FILE is the results.jsonl of a sweep, and the sweeps differ in how long they train. Nothing is run.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_mlp_ds.errors import USAGE, UserError, explaining, print_error
from sparse_mlp_ds.sweep import gather, plot
from sparse_mlp_ds.sweep.intervals import Difference, Interval
from sparse_mlp_ds.sweep.results import is_share


@dataclass(frozen=True)
class Point:
    """One setting after one length of training."""

    sweep: str
    setting: str
    images: int
    """Images, or rows of text, that the run was trained on in all of its stages; those of evaluations do not count."""
    difference: Difference


def main() -> None:
    """Print the differences, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--settings", nargs="+", help="those to show (all that are not the first)")
    parser.add_argument("--plot", type=Path, help="draw the differences into this SVG file")
    args = parser.parse_args()
    try:
        with explaining():
            if args.plot and not args.plot.parent.is_dir():
                raise UserError(f"--plot {args.plot}: its folder is not there; make it")
            metric, points = read(args.files, args.settings)
            scale = 100 if is_share(metric) else 1
            if args.plot:
                plot.draw(lambda: draw(metric, points, scale), args.plot)
    except UserError as error:
        print_error(f"error: {error}")
        sys.exit(USAGE)
    Console(width=160).print(_table(points, scale))


def read(paths: list[Path], settings: list[str] | None = None) -> tuple[str, list[Point]]:
    """Return the first metric of the files, and the differences of it in the order of training length.

    Raises UserError if a file is damaged, or if the files differ in their first metric or setting, or have nothing to
    compare.
    """
    pages = [gather.page_of_file(path) for path in paths]
    metrics = {page.about.metrics[0] for page in pages}
    if len(metrics) > 1:
        raise UserError(f"{paths[0]}: the files measure {', '.join(sorted(metrics))}; give those of one metric")
    firsts = {page.rows[0].setting for page in pages}
    if len(firsts) > 1:
        raise UserError(f"{paths[0]}: the files compare with {', '.join(sorted(firsts))}; give those of one comparison")
    (metric,) = metrics
    points = []
    for page in pages:
        for one in page.differences:
            if one.metric == metric and (settings is None or one.setting in settings):
                seed = next(iter(one.difference.by_seed))
                trained = sum(stage.images for stage in page.records.of((one.setting, seed)).values() if stage.steps)
                points.append(Point(page.about.name, one.setting, trained, one.difference))
    if not points:
        raise UserError(f"{paths[0]}: no setting to compare; give --settings of runs that have a pair with a same seed")
    return metric, sorted(points, key=lambda point: (point.setting, point.images))


def _table(points: list[Point], scale: int) -> Table:
    table = Table("setting", "sweep", "images", "difference", "95 % over seeds", "95 % over images", "seeds")
    for point in points:
        both = (_text(one, scale) for one in (point.difference.over_seeds, point.difference.over_images))
        mean, seeds = f"{scale * point.difference.mean:+.2f}", str(len(point.difference.by_seed))
        table.add_row(point.setting, point.sweep, f"{point.images:,}", mean, *both, seeds)
    return table


def _text(interval: Interval | None, scale: int) -> str:
    return f"{scale * interval[0]:+.2f} .. {scale * interval[1]:+.2f}" if interval else "-"


def draw(metric: str, points: list[Point], scale: int) -> Any:
    """Draw a line for each setting. Thick bars are intervals over seeds, thin ones over images, dots are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    settings = list(dict.fromkeys(point.setting for point in points))
    for number, name in enumerate(settings):
        own, color = [point for point in points if point.setting == name], f"C{number}"
        apart = 1.04 ** (number - (len(settings) - 1) / 2)  # so that bars stand beside one another
        places = [point.images * apart for point in own]
        axes.plot(places, [scale * point.difference.mean for point in own], "o-", color=color, label=name)
        for place, point in zip(places, own, strict=True):
            for interval, width in ((point.difference.over_seeds, 3.0), (point.difference.over_images, 1.0)):
                if interval:
                    ends = [scale * end for end in interval]
                    axes.plot([place, place], ends, color=color, linewidth=width, alpha=0.5, solid_capstyle="butt")
            seeds = [scale * value for value in point.difference.by_seed.values()]
            axes.plot([place * 1.015] * len(seeds), seeds, ".", color=color, markersize=4)
    axes.set_xscale("log")
    lengths = sorted({point.images for point in points})
    axes.set_xticks(lengths, [f"{length / 1e6:.2g} M" for length in lengths])
    axes.set_xticks([], minor=True)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.margins(x=0.15)
    unit = "points" if scale == 100 else "same unit"
    axes.set_ylabel(f"{metric}, {unit}:\ndifference to the first setting")
    axes.set_xlabel("images trained on\nthick: 95 % over seeds, thin: over images, dots: seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
