"""`sparse-mlp-ds routes`: what the experts of a model do with images, as data and as pictures."""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.data.config import Data
    from sparse_mlp_ds.data.index import Index
    from sparse_mlp_ds.hub import SparseVisionModel

_ANY_LABEL = 1 << 31


def add_to(commands: Any) -> None:
    """Add `routes` to the command line. commands: argparse's sub-parsers."""
    routes = commands.add_parser(
        "routes",
        help="show what the experts of a model do with images, as data and as pictures",
        description="Sends the images of SHARDS through a model and writes what its experts did into a folder: "
        "routes.json, and pictures drawn from it (SVG). docs/routes.md explains them. Of a run, the experts' load "
        "during training is drawn too. In evaluation, which this is, no item is dropped.",
    )
    routes.add_argument(
        "model",
        type=as_location,
        metavar="MODEL",
        help="folder of an export, a run or a checkpoint, OWNER/NAME of an export on the Hugging Face Hub, or cifar10, "
        "which comes with the package",
    )
    routes.add_argument(
        "shards",
        type=as_location,
        metavar="SHARDS",
        help="folder of tars with an index.json, or a pattern such as FOLDER/NAME-{000000..000009}.tar",
    )
    routes.add_argument(
        "--out", type=as_path, required=True, metavar="FOLDER", help="new or empty folder, or one with earlier routes"
    )
    routes.add_argument(
        "--images", type=int, metavar="N", help="at most N images, taken evenly from SHARDS (default: all)"
    )
    routes.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="images per forward pass (default: 256)"
    )
    routes.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that decode images; 0 decodes them in the main process (default: %(default)s)",
    )
    routes.set_defaults(run=_routes)


def _routes(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.checkpoints.manifest import checkpoints_of
    from sparse_mlp_ds.cli.predict import open_image_model
    from sparse_mlp_ds.routes import load_history
    from sparse_mlp_ds.routes.collect import Images, collect
    from sparse_mlp_ds.routes.layers import layers_of
    from sparse_mlp_ds.routes.write import check_target, write
    from sparse_mlp_ds.train import evaluate

    if args.batch_size < 1 or args.workers < 0 or (args.images is not None and args.images < 1):
        raise UserError("routes: --batch-size and --images are at least 1, --workers at least 0")
    check_target(args.out)
    model = open_image_model(args.model)
    layers = {layer.name for layer in layers_of(model.backbone, model.config.spec)}
    if not layers:
        raise UserError(f"{args.model}: {model.config.name} has no experts; give a model that has, such as Sparse-MLP")
    is_run = checkpoints_of(Path(args.model)) is not None
    load = load_history.read(Path(args.model) / "metrics.jsonl", layers) if is_run else ()
    if is_run and not load:
        print(f"WARNING: {args.model}: its records do not tell the experts' load over training", file=sys.stderr)
    data, index, names = _images(args, model)
    with redirect_stdout(sys.stderr):  # which names the images that are not counted
        batches = evaluate.batches(index, data, model.config.spec.image_size, args.batch_size)
        images = Images(index, data, names)
        record = collect(model.backbone, model.config.spec, images, batches, _title(model), lambda _: load)
    assert record is not None  # of the one rank that there is
    pictures = write(args.out, record)
    print(
        f"{record.images} images, {len(record.layers)} MoE layers: {args.out}/routes.json and {len(pictures)} pictures"
    )


def _images(args: argparse.Namespace, model: "SparseVisionModel") -> "tuple[Data, Index, list[str]]":
    """Return how images are read, which there are, and a name for each class. Raises UserError if classes differ."""
    from sparse_mlp_ds.data.class_names import ClassList, agree, filled
    from sparse_mlp_ds.data.config import Data
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.data.sources import open_sources, remarks

    pixels, known = model.config.data.model_dump(), len(model.classes)
    # A model without a head knows no classes, so that every label of the shards is one.
    data = Data(train=args.shards, classes=known or _ANY_LABEL, workers=args.workers, **pixels)
    index = join(open_sources(data, data.train))
    found = remarks(data.train)
    if known:
        lists = [ClassList(args.model, model.classes), ClassList(args.shards, index.classes)]
        names, of_classes = agree(lists, known, f"{args.model} knows {known} classes")
        found += of_classes
    else:
        largest = max((int(shard.labels.max(initial=0)) for shard in index.shards), default=0)
        names = filled(index.classes, max(largest + 1, len(index.classes)))
        data = data.model_copy(update={"classes": len(names)})
    for remark in found:
        print(f"WARNING: {remark}", file=sys.stderr)
    return data, index.thinned(args.images) if args.images else index, names


def _title(model: "SparseVisionModel") -> str:
    """Return what a model is, in a few words."""
    origin = model.config.origin
    parts = [model.config.name, origin.recipe and f"recipe {origin.recipe}", origin.stage and f"stage {origin.stage}"]
    return ", ".join(str(part) for part in (*parts, origin.step is not None and f"step {origin.step}") if part)
