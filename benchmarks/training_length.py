"""What settings gain over others, over the length of training: comparisons from several results files.

Each FILE is the results.jsonl of a sweep, and the sweeps differ in how long they train, or in how large their models
are. Nothing is run.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_mlp_ds.errors import USAGE, UserError, explaining, print_error
from sparse_mlp_ds.sweep import gather, plot
from sparse_mlp_ds.sweep.intervals import Difference, Interval
from sparse_mlp_ds.sweep.page import Page
from sparse_mlp_ds.sweep.results import is_share


@dataclass(frozen=True)
class Point:
    """One setting, compared with another one after the same length of training."""

    sweep: str
    setting: str
    base: str
    """The setting that it is compared with."""
    macs: int
    """Multiply-accumulates of the setting, for one image or row of text."""
    images: int
    """Images, or rows of text, that the run was trained on in all of its stages; those of evaluations do not count."""
    samples: str
    """What they are: `images` or `sequences`."""
    difference: Difference

    @property
    def line(self) -> tuple[int, str, str]:
        """What the points of one line of the plot have in common."""
        return self.macs, self.setting, self.base


def main() -> None:
    """Print the differences, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--settings",
        nargs="+",
        metavar="SETTING[:BASE]",
        help="those to show, each against BASE where a file has both (all, each against the first of its file)",
    )
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
    """Return the first metric of the files, and the differences of it: line by line, in the order of training length.

    Args:
        paths: Results files.
        settings: What to compare: SETTING with the first setting of each file, SETTING:BASE with another one. None
            compares all settings with the first ones.

    Raises UserError if a file is damaged, or if the files differ in their first metric, or in their first setting where
    something is compared with it, or have nothing to compare, or if one of the settings is in none of them.
    """
    pages = [gather.page_of_file(path) for path in paths]
    metrics = {page.about.metrics[0] for page in pages}
    if len(metrics) > 1:
        raise UserError(f"{paths[0]}: the files measure {', '.join(sorted(metrics))}; give those of one metric")
    pairs = [name.partition(":")[::2] for name in settings or ()]
    plain = [name for name, base in pairs if not base]
    firsts = {page.rows[0].setting for page in pages}
    if len(firsts) > 1 and (plain or settings is None):
        raise UserError(
            f"{paths[0]}: the files compare with {', '.join(sorted(firsts))}; give those of one comparison, "
            "or --settings SETTING:BASE"
        )
    points: list[Point] = []
    for path, page in zip(paths, pages, strict=True):
        points += _points(page, plain if settings is not None else None)
        known = {row.setting for row in page.rows}
        for name, base in pairs:
            if base and known >= {name, base}:
                points += _points(gather.page_of_file(path, chosen=[base, name]))
    for name, base in pairs:
        if not any(point.setting == name and base in ("", point.base) for point in points):
            wanted = f"{name} and {base}" if base else f"{name} and its first setting"
            raise UserError(f"--settings {name}{base and ':'}{base}: no file has {wanted} with a same seed")
    if not points:
        raise UserError(f"{paths[0]}: no setting to compare; give --settings of runs that have a pair with a same seed")
    return metrics.pop(), sorted(points, key=lambda point: (*point.line, point.images))


def _points(page: Page, settings: list[str] | None = None) -> Iterator[Point]:
    """Yield what a page says of the first of its metrics: of these settings, or of all."""
    macs = {row.setting: row.macs for row in page.rows}
    for one in page.differences:
        if one.metric == page.about.metrics[0] and (settings is None or one.setting in settings):
            seed = next(iter(one.difference.by_seed))
            trained = sum(stage.images for stage in page.records.of((one.setting, seed)).values() if stage.steps)
            base = page.rows[0].setting
            yield Point(page.about.name, one.setting, base, macs[one.setting], trained, page.samples, one.difference)


def _table(points: list[Point], scale: int) -> Table:
    of_one = ("difference", "95 % over seeds", f"95 % over {points[0].samples}", "seeds")
    table = Table("setting", "against", "MACs", "sweep", points[0].samples, *of_one)
    for point in points:
        both = (_text(one, scale) for one in (point.difference.over_seeds, point.difference.over_images))
        mean, seeds = f"{scale * point.difference.mean:+.2f}", str(len(point.difference.by_seed))
        model = (point.setting, point.base, f"{point.macs / 1e6:.3g} M")
        table.add_row(*model, point.sweep, f"{point.images:,}", mean, *both, seeds)
    return table


def _text(interval: Interval | None, scale: int) -> str:
    return f"{scale * interval[0]:+.2f} .. {scale * interval[1]:+.2f}" if interval else "-"


def draw(metric: str, points: list[Point], scale: int) -> Any:
    """Draw a line for each comparison. Thick bars are intervals over seeds, thin ones over images, dots are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines = list(dict.fromkeys(point.line for point in points))
    for number, line in enumerate(lines):
        own, color = [point for point in points if point.line == line], f"C{number}"
        macs, setting, base = line
        apart = 1.04 ** (number - (len(lines) - 1) / 2)  # so that bars stand beside one another
        places = [point.images * apart for point in own]
        means = [scale * point.difference.mean for point in own]
        label = f"{setting} over {base}, {macs / 1e6:.3g} M MACs"
        axes.plot(places, means, "o-", color=color, label=label)
        for place, point in zip(places, own, strict=True):
            for interval, width in ((point.difference.over_seeds, 3.0), (point.difference.over_images, 1.0)):
                if interval:
                    ends = [scale * end for end in interval]
                    axes.plot([place, place], ends, color=color, linewidth=width, alpha=0.5, solid_capstyle="butt")
            seeds = [scale * value for value in point.difference.by_seed.values()]
            axes.plot([place * 1.015] * len(seeds), seeds, ".", color=color, markersize=4)
    axes.set_xscale("log")
    lengths: list[int] = []
    for length in sorted({point.images for point in points}):
        lengths += [length] * (not lengths or length > 1.4 * lengths[-1])  # labels that are nearer cover one another
    axes.set_xticks(lengths, [f"{length / 1e6:.2g} M" for length in lengths])
    axes.set_xticks([], minor=True)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.margins(x=0.15)
    unit, samples = "points" if scale == 100 else "same unit", points[0].samples
    axes.set_ylabel(f"{metric}, {unit}:\ndifference between settings")
    axes.set_xlabel(f"{samples} trained on\nthick: 95 % over seeds, thin: over {samples}, dots: seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
