"""The page about one run."""

from functools import partial

from sparse_mlp_ds.report import classes, curves, experts, sections, thumbnails
from sparse_mlp_ds.report.charts import MOST_POINTS
from sparse_mlp_ds.report.markup import Markup, element, folded, joined, note
from sparse_mlp_ds.report.page import Section, page
from sparse_mlp_ds.report.run_files import RunFiles

_THINNED = (
    f"Curves have at most {MOST_POINTS} points: of longer ones, both ends are drawn, and the lowest and the highest "
    "value of each of many equally long stretches, so that no spike is lost. Figures in a legend are the last values."
)


def write(run: RunFiles) -> str:
    """Return the page of a run as HTML."""
    outcomes = partial(_classes, run)
    head = [element("p", element("span", sections.state(run), class_="state"), f" {run.path}")]
    parts: list[Section] = [
        ("Results", partial(sections.results, run)),
        ("Plan", partial(sections.plan, run)),
        *((f"Stage {name}", partial(_curves, run, name)) for name in run.records),
        ("Experts", partial(experts.section, run)),
        ("Classes and calibration", outcomes),
        ("Where time went", partial(sections.where_time_went, run)),
        ("Checkpoints", partial(sections.checkpoints, run)),
        ("Bad samples", partial(sections.bad_samples, run)),
        ("Events", partial(sections.events, run)),
        ("Provenance", partial(sections.provenance, run)),
        ("Files that could not be read", partial(_remarks, run)),
    ]
    return page(f"Run {run.name}", head, parts)


def _curves(run: RunFiles, stage: str) -> Markup:
    charts = curves.of_stage(run.records[stage])
    return joined([element("div", *charts, class_="charts"), note(_THINNED)])


def _classes(run: RunFiles) -> Markup:
    """Return the figures by class of every stage that has some, the last one first and unfolded."""
    found = [(name, classes.Outcome.of(run.outcome(name))) for name in run.stages]
    known = [(name, outcome) for name, outcome in reversed(found) if outcome is not None]
    if not known:
        return note("Not recorded: no stage with a classifier is finished, or an earlier version made the run.")
    name, newest = known[0]
    images, why_none = thumbnails.of_classes(run.recipe, newest.worst())
    parts = [element("h3", f"Stage {name}"), classes.section(newest, images, why_none)]
    parts += [folded(f"Stage {other}", classes.section(outcome, {}, "")) for other, outcome in known[1:]]
    return joined(parts)


def _remarks(run: RunFiles) -> Markup:
    return joined(element("p", one, class_="warning") for one in dict.fromkeys(run.remarks))
