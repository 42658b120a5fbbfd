"""Charts as inline SVG, whose colours come from the page's style sheet, so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sparse_mlp_ds.report.markup import Markup, element, joined

WIDTH, HEIGHT = 360, 210
"""Size of a chart in units of about a pixel on a phone."""
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 8, 34
"""Space around the plotted area."""
COLOURS = 8
"""Number of colours; further curves have the same ones with dashes."""
MOST_POINTS = 400
"""Most points of a curve."""
LARGEST = 1e300
"""Values from here on are left out like those that are not finite: sums of them would not be."""
LOGARITHMIC = 100.0
"""An axis of positive values becomes logarithmic if the largest is this many times the smallest."""


class Form(Protocol):
    """Writes a value."""

    def __call__(self, value: float, digits: int = 4) -> str:
        """Return a value as text. digits: most significant digits."""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart."""

    name: str
    """Its name in the legend."""
    points: Sequence[tuple[float, float]]
    """[N] x and y. A y that is no finite number leaves a gap."""
    marked: bool = False
    """Whether each point is marked, as for what is measured rarely."""
    colour: int | None = None
    """Number of its colour; None takes its place in the chart."""


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: both ends, and of each of equally long stretches the lowest and the highest value.

    So no spike is lost. A stretch with a value that is no finite number keeps the first such one, too, as a gap.
    """
    if len(points) <= most:
        return list(points)
    stretches = max((most - 2) // 3, 1)
    kept = []
    for number in range(stretches):
        part = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        finite = [one for one in part if math.isfinite(one[1])]
        chosen = set([one for one in part if not math.isfinite(one[1])][:1])
        if finite:
            chosen |= {min(finite, key=lambda one: one[1]), max(finite, key=lambda one: one[1])}
        kept += sorted(chosen, key=lambda one: one[0])
    ends = [one for one, there in ((points[0], kept[0]), (points[-1], kept[-1])) if one is not there]
    return sorted([*kept, *ends], key=lambda one: one[0])


def number(value: float, digits: int = 4) -> str:
    """Return a number as few characters: 0.001, 1.5, 12k, 3.4e-5. digits: most significant digits."""
    text = f"{value:.{digits}g}" if not value or 1e-3 <= abs(value) < 1e5 else f"{value:.{min(digits, 3) - 1}e}"
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    power = int(exponent)
    if 0 <= power < 5:  # so short a number of digits that Python writes 300 as 3e+02
        return f"{float(text):.0f}"
    for size, letter in ((6, "M"), (3, "k")):
        if size <= power < 9:
            return f"{float(mantissa) * 10 ** (power - size):g}{letter}"
    return f"{float(mantissa):g}e{power}"


def percent(value: float, digits: int = 4) -> str:
    """Return a share in [0, 1] as percent. digits: most significant digits."""
    return f"{100 * value:.{digits}g} %"


@dataclass(frozen=True)
class _Axis:
    """Where the values of one axis are drawn."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return where a value is."""
        low, high, value = (math.log10(one) if self.logarithmic else one for one in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values along the axis."""
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            step = max(1, -(-len(powers) // 5))
            found = [10.0**power for power in powers][::step]
            return found if len(found) > 1 else [self.low, self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step_size = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= rough)
        first = math.ceil(self.low / step_size - 1e-9)
        count = math.floor(self.high / step_size + 1e-9) - first + 1
        return [(first + place) * step_size for place in range(count)]


def _axis(values: Sequence[float], start: float, end: float, may_be_logarithmic: bool) -> _Axis:
    low, high = min(values), max(values)
    if may_be_logarithmic and low > 0 and high / low >= LOGARITHMIC:
        return _Axis(low, high, start, end, logarithmic=True)
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        room = abs(high) * 0.1 or 1.0
        return _Axis(low - room, high + room, start, end)
    return _Axis(low, high, start, end)


def line_chart(
    title: str, curves: Sequence[Curve], x_label: str, form: Form = number, logarithmic: bool = False
) -> Markup:
    """Return a chart of several curves over the same axes, with its title and legend; nothing without a finite point.

    Args:
        title: What is drawn, with its unit.
        curves: The curves.
        x_label: What x counts.
        form: Writes a value of y.
        logarithmic: Whether the axis becomes logarithmic if the values span much.
    """
    drawable = [[(x, y if abs(y) < LARGEST else math.nan) for x, y in one.points if abs(x) < LARGEST] for one in curves]
    lines = [thinned(line) for line in drawable]
    finite = [(x, y) for line in lines for x, y in line if math.isfinite(y)]
    if not finite:
        return Markup("")
    across = _axis([x for x, _ in finite], LEFT, WIDTH - RIGHT, may_be_logarithmic=False)
    up = _axis([y for _, y in finite], HEIGHT - BOTTOM, TOP, may_be_logarithmic=logarithmic)
    drawn = [_grid(across, up, form), _x_title(x_label)]
    legend = []
    for place, (curve, line) in enumerate(zip(curves, lines, strict=True)):
        ends = [y for _, y in line if math.isfinite(y)]
        if not ends:
            continue
        colour = place if curve.colour is None else curve.colour
        drawn.append(_curve(line, across, up, colour, curve.marked))
        legend.append(element("li", _swatch(colour), f"{curve.name} ", element("b", form(ends[-1]))))
    scale = "; logarithmic axis" if up.logarithmic else ""
    label = f"{title}{scale}: " + ", ".join(curve.name for curve in curves)
    picture = element("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    return element("figure", element("figcaption", title + scale), picture, element("ul", *legend, class_="legend"))


def _grid(across: _Axis, up: _Axis, form: Form) -> Markup:
    parts = []
    values = up.ticks()
    for value in values:
        y = round(up.at(value), 1)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(element("text", form(value, _digits(values)), x=LEFT - 5, y=y + 3.5, text_anchor="end"))
    ticks = across.ticks()
    for value in ticks:
        x = round(across.at(value), 1)
        parts.append(element("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        parts.append(element("text", number(value), x=x, y=HEIGHT - BOTTOM + 15, text_anchor=_anchor(x)))
    base = HEIGHT - BOTTOM
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    return joined(parts)


def _digits(ticks: Sequence[float]) -> int:
    """Return how many digits tell neighbouring values of an axis apart."""
    steps = [abs(b - a) for a, b in zip(ticks, ticks[1:], strict=False) if a != b]
    largest = max(map(abs, ticks), default=0.0)
    return min(math.ceil(math.log10(max(largest / min(steps), 1))) + 1, 7) if steps and largest else 4


def _anchor(x: float) -> str:
    """Return how a number below the axis is placed, so that it stays inside the chart."""
    return "end" if x > WIDTH - RIGHT - 14 else "middle"


def _x_title(text: str) -> Markup:
    return element("text", text, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle", class_="title")


def _curve(line: Sequence[tuple[float, float]], across: _Axis, up: _Axis, colour: int, marked: bool) -> Markup:
    commands, dots, goes_on = [], [], False
    for x, y in line:
        if not math.isfinite(y):
            goes_on = False
            continue
        place = f"{across.at(x):.1f} {up.at(y):.1f}"
        commands.append(f"{'L' if goes_on else 'M'}{place}")
        dots.append(place.split())
        goes_on = True
    names = f"curve s{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")
    parts = [element("path", d="".join(commands), class_=names)]
    if (marked and len(dots) <= 60) or len(dots) == 1:
        parts += [element("circle", cx=x, cy=y, r=2.5, class_=f"dot s{colour % COLOURS}") for x, y in dots]
    return joined(parts)


def _swatch(colour: int) -> Markup:
    line = element("path", d="M0 5H18", class_=f"curve s{colour % COLOURS}" + (" dashed" if colour >= COLOURS else ""))
    return element("svg", line, viewBox="0 0 18 10", class_="swatch", aria_hidden="true")


def shares_bar(parts: Sequence[tuple[str, float]]) -> Markup:
    """Return a bar that is divided into parts, with a legend. parts: name and size of each, in any unit."""
    total = sum(size for _, size in parts) or 1.0
    drawn, legend, x = [], [], 0.0
    for place, (name, size) in enumerate(parts):
        width = 1000 * size / total
        drawn.append(
            element("rect", x=round(x, 1), y=0, width=round(width, 1), height=40, class_=f"area s{place % COLOURS}")
        )
        square = element("rect", width=10, height=10, class_=f"area s{place % COLOURS}")
        key = element("svg", square, viewBox="0 0 10 10", class_="square", aria_hidden="true")
        legend.append(element("li", key, f"{name} ", element("b", percent_of(size, total))))
        x += width
    label = ", ".join(f"{name} {percent_of(size, total)}" for name, size in parts)
    bar = element(
        "svg", *drawn, viewBox="0 0 1000 40", preserveAspectRatio="none", class_="bar", role="img", aria_label=label
    )
    return joined([bar, element("ul", *legend, class_="legend")])


def percent_of(size: float, total: float) -> str:
    """Return a part of a whole as percent, with one decimal."""
    return f"{100 * size / total:.1f} %"
