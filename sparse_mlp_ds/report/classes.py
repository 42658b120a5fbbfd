"""How a classifier did class by class: confusion matrix, worst classes, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_mlp_ds.report import pixels
from sparse_mlp_ds.report.charts import LEFT, number, percent
from sparse_mlp_ds.report.markup import Markup, element, facts, joined, note, table
from sparse_mlp_ds.report.run_files import Record, is_finite

MOST_CELLS = 20
"""Most classes whose confusion matrix is drawn with counts; a larger one is drawn as pixels."""
WORST = 10
"""Number of classes in the table of the worst ones, and of pairs in that of the most frequent confusions."""

_LEGEND = "Counts of images; the stronger the colour, the larger the share of the row."


@dataclass(frozen=True)
class Outcome:
    """The content of a STAGE.json, checked."""

    classes: list[str]
    top1: list[float | None]
    """Top-1 of each class, as a share; None for a class without images."""
    confusion: np.ndarray | None
    """[classes, classes]: entry (r, c) is the number of images of class r that were classified as c."""
    calibration: np.ndarray | None
    """[bins, 3]: for each bin of confidence the number of images, of hits, and the sum of confidences."""
    ece: float | None

    @classmethod
    def of(cls, record: Record) -> "Outcome | None":
        """Return what a file holds; None if it holds no figures by class."""
        classes, top1 = record.get("classes"), record.get("top1_by_class")
        if not (isinstance(classes, list) and isinstance(top1, list) and len(classes) == len(top1) > 0):
            return None
        if not all(one is None or is_finite(one) for one in top1):
            return None
        confusion = _matrix(record.get("confusion"), len(classes))
        ece = record.get("ece")
        names = [str(name) for name in classes]
        return cls(names, top1, confusion, _matrix(record.get("calibration"), 3), ece if is_finite(ece) else None)

    def worst(self) -> list[int]:
        """Return the numbers of the classes with the lowest accuracy, the worst first."""
        known = [number for number, share in enumerate(self.top1) if share is not None]
        return sorted(known, key=lambda number: self.top1[number] or 0.0)[:WORST]


def _matrix(value: Any, columns: int) -> np.ndarray | None:
    """Return a list of rows as an array; None if it is none."""
    try:
        found = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return None
    is_one = found.ndim == 2 and found.shape[1] == columns and np.isfinite(found).all() and (found >= 0).all()
    return found if is_one else None


def section(outcome: Outcome, thumbnails: dict[int, list[str]], why_none: str) -> Markup:
    """Return confusion matrix, worst classes and calibration.

    Args:
        outcome: The figures.
        thumbnails: Class -> images of it, as addresses that hold them.
        why_none: Why there are no thumbnails.
    """
    parts = []
    if outcome.confusion is not None:
        parts.append(_confusion(outcome.classes, outcome.confusion))
    if outcome.calibration is not None and outcome.calibration[:, 0].any():
        parts.append(_calibration(outcome.calibration, outcome.ece))
    drawn = element("div", *parts, class_="pictures")
    if outcome.confusion is None:
        drawn = joined([drawn, note("The confusion matrix was not recorded.")])
    if outcome.calibration is None:
        drawn = joined([drawn, note("The calibration was not recorded by class of confidence.")])
    return joined([drawn, _worst(outcome, thumbnails, why_none), _pairs(outcome)])


def _worst(outcome: Outcome, thumbnails: dict[int, list[str]], why_none: str) -> Markup:
    rows = []
    for place in outcome.worst():
        row: list[object] = [outcome.classes[place], percent(outcome.top1[place] or 0.0)]
        if outcome.confusion is not None:
            others = outcome.confusion[place].copy()
            others[place] = 0
            guess = int(others.argmax())
            mistaken = f"{outcome.classes[guess]} ({others[guess]:.0f})" if others[guess] else "none"
            row += [f"{outcome.confusion[place].sum():.0f}", mistaken]
        if thumbnails:
            images = [_thumbnail(uri, outcome.classes[place]) for uri in thumbnails.get(place, [])]
            row.append(element("span", *images))
        rows.append(row)
    head = ["class", "top-1"] + (["images", "most often taken for"] if outcome.confusion is not None else [])
    head += ["some of its images"] if thumbnails else []
    parts = [element("h3", "Worst classes"), table(head, rows)]
    return joined([*parts, note(f"Without images: {why_none}.")] if why_none else parts)


def _thumbnail(uri: str, name: str) -> Markup:
    return element("img", src=uri, alt=f"image of class {name}", class_="thumb", loading="lazy")


def _pairs(outcome: Outcome) -> Markup:
    """Return the most frequent confusions as a table."""
    if outcome.confusion is None:
        return Markup("")
    wrong = outcome.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:WORST]
    pairs = [divmod(int(place), len(wrong)) for place in order]
    rows = [[outcome.classes[a], outcome.classes[b], f"{wrong[a, b]:.0f}"] for a, b in pairs if wrong[a, b]]
    return joined([element("h3", "Most frequent confusions"), table(["class", "taken for", "images"], rows)])


def _confusion(names: Sequence[str], matrix: np.ndarray) -> Markup:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    title = "Confusion matrix: rows are the images' classes, columns what they were taken for"
    if len(names) > MOST_CELLS:
        drawn = pixels.heat(np.sqrt(shares), title)
        return element(
            "figure",
            element("figcaption", title),
            drawn,
            note(f"{len(names)} x {len(names)} classes in order; the colour is the square root of the row's share."),
        )
    short_names = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
    cell, edge = 30, 10 + 8 * max(map(len, short_names))  # a letter is at most about 8 wide
    size = edge + cell * len(names) + 4
    parts = []
    for row, name in enumerate(names):
        middle = row * cell + cell / 2 + 3
        short, place_of_row = short_names[row], {"x": edge - 5, "y": edge + middle, "text_anchor": "end"}
        parts.append(element("text", element("title", name), short, **place_of_row))
        turned = f"translate({edge + middle} {edge - 5}) rotate(-90)"
        parts.append(element("text", element("title", name), short, transform=turned))
        for column, count in enumerate(matrix[row]):
            x, y = edge + column * cell, edge + row * cell
            shade = round(0.08 + 0.6 * float(shares[row, column]), 3) if count else 0
            parts.append(element("rect", x=x, y=y, width=cell - 1, height=cell - 1, class_="share", fill_opacity=shade))
            if count:
                text = f"{count:.0f}"
                place = {"x": x + cell / 2 - 0.5, "y": y + cell / 2 + 3, "text_anchor": "middle"}
                parts.append(element("text", text, class_="cell", **place))
    picture = element("svg", *parts, viewBox=f"0 0 {size} {size}", role="img", aria_label=title)
    return element(
        "figure",
        element("figcaption", title),
        picture,
        note(_LEGEND),
    )


def _calibration(bins: np.ndarray, ece: float | None) -> Markup:
    """Return hits by confidence (a reliability diagram): bars on the diagonal are what is wanted."""
    width, height, base, top = 360, 300, 264, 10
    across, up = (lambda share: LEFT + share * (width - LEFT - 12)), (lambda share: base - share * (base - top))
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = across(share), up(share)
        parts.append(element("line", x1=LEFT, x2=width - 12, y1=y, y2=y, class_="grid"))
        parts.append(element("text", percent(share), x=LEFT - 5, y=y + 3.5, text_anchor="end"))
        anchor = "end" if share == 1 else "middle"
        parts.append(element("text", number(100 * share), x=x, y=base + 15, text_anchor=anchor))
    wide = 1 / len(bins)
    for place, (images, hits, _) in enumerate(bins):
        if images:
            x, y = across(place * wide), up(min(hits / images, 1.0))
            told = element("title", f"{images:.0f} images, {percent(hits / images)} of them right")
            size = {"width": round(across(wide) - LEFT - 1.5, 1), "height": round(base - y, 1)}
            shape = {"x": round(x, 1), "y": round(y, 1), "class_": "share", "fill_opacity": 0.65}
            parts.append(element("rect", told, **shape, **size))
    ends = {"x1": across(0), "y1": up(0), "x2": across(1), "y2": up(1)}
    parts.append(element("line", **ends, class_="diagonal"))
    label = "confidence of the answer, %"
    parts.append(element("text", label, x=(LEFT + width) / 2, y=height - 5, text_anchor="middle"))
    title = "Calibration: share of right answers by confidence"
    picture = element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=title)
    sizes = f"{bins[:, 0].sum():.0f} images in {len(bins)} bins; on the dashed line, confidence is what comes true."
    figures = facts([("Expected calibration error", percent(ece))]) if ece is not None else Markup("")
    return element("figure", element("figcaption", title), picture, figures, note(sizes))
