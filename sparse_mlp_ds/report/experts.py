"""What the experts did: the pictures of RUN/routes, and the load during training from the records."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.report import pixels
from sparse_mlp_ds.report.markup import Markup, element, joined, note
from sparse_mlp_ds.report.run_files import METRICS, RunFiles

if TYPE_CHECKING:  # a run without experts does not wait for the import of torch
    from sparse_mlp_ds.routes.record import Load

PICTURES_BYTES = 1_200_000
"""Most bytes of routing pictures in a page; further ones are named."""
LOADS = 24
"""Most layers and stages whose load during training is drawn."""
_FIRST = ("load", "classes", "images", "entropy", "agreement", "items", "fields", "patches", "token_mixing")


def section(run: RunFiles) -> Markup:
    """Return the pictures of a run's experts; nothing for a run without experts."""
    folders = [run.path / "routes" / stage for stage in run.stages if "/" not in stage]
    folders = [path for path in folders if path.is_dir()]
    shown, left_out, room = [], list[Path](), PICTURES_BYTES
    for folder in folders:
        figures = []
        for path in sorted(folder.glob("*.svg"), key=_importance):
            if not path.is_file() or path.is_symlink():  # a link could bring a private file into the page
                continue
            if path.stat().st_size > room:
                left_out.append(path)
                continue
            content = path.read_bytes()
            room -= len(content)
            # As an image of its own, a picture from the folder can neither run a script nor load anything.
            uri = pixels.data_uri(content, "image/svg+xml")
            drawn = element("img", src=uri, alt=path.stem, class_="drawn", loading="lazy")
            figures.append(element("figure", element("figcaption", path.stem), drawn))
        shown.append(element("h3", f"Routing at the end of {folder.name}"))
        shown.append(element("div", *figures, class_="pictures"))
    if left_out:
        names = ", ".join(str(path.relative_to(run.path)) for path in left_out)
        shown.append(note(f"Left out, so that the page stays small: {names} in the run folder."))
    return joined([*_loads(run), *shown])


def _read(run: RunFiles, layers: set[str]) -> "list[Load]":
    from sparse_mlp_ds.routes import load_history

    return list(load_history.read(run.path / METRICS, layers))


def _importance(path: Path) -> tuple[int, str]:
    kind = path.stem.partition("-")[0]
    return (_FIRST.index(kind) if kind in _FIRST else len(_FIRST), path.stem)


def _loads(run: RunFiles) -> list[Markup]:
    """Return a heat map of each layer's load in each stage: experts from top to bottom, steps from left to right."""
    keys = {key for records in run.records.values() for one in records for key in one}
    layers = {key.split("/")[1] for key in keys if key.startswith("moe/") and key.count("/") == 2}
    try:
        loads = _read(run, layers) if layers else []
    except UserError:
        loads = []
    # The pictures of a stage in RUN/routes show its load, too.
    loads = [load for load in loads if not any((run.path / "routes" / load.stage).glob("load-*.svg"))]
    figures = []
    for load in loads[:LOADS]:
        items = np.array(load.items, dtype=np.float64).T  # [E, N]
        shares = items / np.maximum(items.sum(axis=0, keepdims=True), 1)
        even = 1 / len(shares)
        title = f"{load.stage}, layer {load.layer}: share of items of each expert"
        scale = f"steps {load.steps[0]} to {load.steps[-1]}; experts 0 to {len(shares) - 1} from top to bottom; "
        scale += f"no colour is 0 %, full colour {200 * even:.3g} % or more, twice an even share"
        drawn = pixels.heat(shares / (2 * even), title, f"{max(48, min(12 * len(shares), 240))}px")
        figures.append(element("figure", element("figcaption", title), drawn, note(scale)))
    if not figures:
        return []
    more = [note(f"{len(loads) - LOADS} further layers and stages are not shown.")] if len(loads) > LOADS else []
    return [element("h3", "Load during training"), element("div", *figures, class_="charts"), *more]
