"""How the pictures of routes look: one style, colours that stay in order when they are printed in grey, SVG as text."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

COLOURS = "cividis"
"""Colour map of amounts: darker is less, for readers who do not see colours too."""
WEIGHTS = "gray"
"""Colour map of weights: black negative, mid-grey zero, white positive."""
WIDTH = 7.2
"""Width of a figure, inches."""
PIXELS_PER_INCH = 96
"""Resolution of what an SVG holds as pixels: heat maps, and panels with hundreds of texts, which would be large."""
MOST_NAMES = 50
"""Most rows or columns of a heat map that are named one by one."""
STYLE: dict[Any, Any] = {
    "image.interpolation": "nearest",  # enlarged here: some viewers of SVG would blur cells into one another
    "svg.hashsalt": "sparse_mlp_ds",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9.5,
    "figure.constrained_layout.w_pad": 0.1,
}
"""Settings under which figures are made; `figures.draw` puts them in force."""


class Drawing:
    """A figure with a title and a grid of axes."""

    def __init__(self, title: str, height: float, rows: int = 1, columns: int = 1, **grid: Any):
        """Make the axes.

        Args:
            title: Title of the figure.
            height: Height of the figure, inches.
            rows: Rows of axes.
            columns: Columns of axes.
            grid: Further arguments of `Figure.subplots`.
        """
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(self.figure)
        self.axes: np.ndarray[Any, Any] = self.figure.subplots(rows, columns, squeeze=False, **grid)
        self.figure.suptitle(title, x=0.01, ha="left")

    def svg(self) -> str:
        """Return the figure as SVG; the same data give the same text."""
        with rc_context(STYLE):
            text = io.StringIO()
            self.figure.savefig(text, format="svg", metadata={"Date": None}, dpi=PIXELS_PER_INCH)
        return text.getvalue()

    def png(self, dots_per_inch: int = 110) -> bytes:
        """Return the figure as PNG."""
        with rc_context(STYLE):
            pixels = io.BytesIO()
            self.figure.savefig(pixels, format="png", dpi=dots_per_inch)
        return pixels.getvalue()


def heat(drawing: Drawing, axes: Axes, values: np.ndarray[Any, Any], meaning: str, limits: Normalize) -> None:
    """Draw values [rows, columns] as colours, with a scale beside them.

    Args:
        drawing: The figure.
        axes: Where in it.
        values: What is drawn; NaN stays white.
        meaning: What the values are, with their unit, beside the scale.
        limits: Which values the darkest and the brightest colour stand for.
    """
    drawn = axes.imshow(values, cmap=COLOURS, norm=limits, aspect="auto")
    drawing.figure.colorbar(drawn, ax=axes, label=meaning, pad=0.02)


def around(middle: float, values: np.ndarray[Any, Any], least: float) -> Normalize:
    """Return limits of a colour scale whose middle is a value that means "as expected": more is light, less is dark.

    Args:
        middle: That value, which is positive.
        values: What is drawn, not negative.
        least: Smallest distance from the middle to the ends, so that noise does not look like a difference.
    """
    far = max(float(np.nanmax(np.abs(values - middle), initial=0)), least)
    return Normalize(max(middle - far, 0.0), middle + far)


def write_values(axes: Axes, values: np.ndarray[Any, Any], form: str, middle: float) -> None:
    """Write values [rows, columns] into a heat map, dark on light colours and light on dark ones.

    form: format of a value, as in `{:.0f}`. middle: value above which the colours are light.
    """
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "black" if value > middle else "white"
            axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=7)


def name_rows(axes: Axes, names: Sequence[str], otherwise: str) -> None:
    """Name the rows of a heat map one by one, or together if they are many.

    otherwise: label of the axis if they are many.
    """
    if len(names) <= MOST_NAMES:
        axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:22]}..." for name in names])
    else:
        axes.set_ylabel(otherwise)


def name_experts(axis: Any, experts: int) -> None:
    """Number experts along an axis (`axes.xaxis` or `axes.yaxis`), every one or every few."""
    step = max(1, -(-experts // 16))
    axis.set_ticks(range(0, experts, step), [str(number) for number in range(0, experts, step)])


def empty(axes: Axes) -> None:
    """Take ticks and frame from axes that hold an image, or nothing."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
