"""`sparse-mlp-ds models`: the registered models with their sizes and costs."""

import argparse
import json
from typing import Any


def add_to(commands: Any) -> None:
    """Add `models` to the command line. commands: argparse's sub-parsers."""
    models = commands.add_parser(
        "models",
        help="list the registered models",
        description="Lists the models that a recipe can name, with their family, total parameters, parameters that an "
        "item meets, multiply-accumulates of one input, depth and width; for models of images the sizes of image and "
        "patch, for models of text the tokens of a row and the vocabulary. Classifier heads are not counted, nor is "
        "the output layer over a vocabulary, whose matrix is the embedding.",
    )
    models.add_argument("--json", action="store_true", help="print exact numbers as JSON instead of a table")
    models.set_defaults(run=_models)


def _models(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.models import preset_costs
    from sparse_mlp_ds.models.presets import PRESETS
    from sparse_mlp_ds.models.spec import PatchSpec

    images, text, costs = list[dict[str, Any]](), list[dict[str, Any]](), preset_costs.read()
    for name, spec in PRESETS.items():
        rows, sizes = (images, ("image_size", "patch_size"))
        if not isinstance(spec, PatchSpec):
            rows, sizes = (text, ("length", "vocabulary"))
        shape = {key: getattr(spec, key) for key in ("depth", "width", *sizes)}
        rows.append({"name": name, "family": spec.family} | costs[name] | shape)
    if args.json:
        print(json.dumps(images + text, indent=1))
        return
    _print("registered models of images, without classifier head", images)
    _print("registered models of text, without classifier head", text)


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table. rows: name -> value, the same names in each."""
    from rich.console import Console
    from rich.table import Table

    if not rows:
        return
    cells = []
    for row in rows:
        millions = {key: row[key] / 1e6 for key in ("params", "params_active")}
        short = {key: f"{count:.{2 if count < 1000 else 0}f}M" for key, count in millions.items()}
        short["macs"] = f"{row['macs'] / 1e9:.2f}G"
        cells.append([str(value) for value in (row | short).values()])
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    width = 0
    for key, column in zip(rows[0], zip(*cells, strict=True), strict=True):
        words = key.split("_")
        width += max(map(len, (*words, *column))) + 1
        table.add_column("\n".join(words), justify="left" if key in ("name", "family") else "right", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console = Console()
    console.width = max(console.width, width)  # a terminal that is narrower breaks lines, and no name is cut
    console.print(table)
