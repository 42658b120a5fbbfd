"""`sparse-mlp-ds predict` and `evaluate`: what a trained model says of images, and how often it is right."""

import argparse
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError

_MODEL = "the folder of an export, a run or a checkpoint"


def add_to(commands: Any) -> None:
    """Add both to the command line."""
    predict = commands.add_parser("predict", help="name the likeliest classes of images")
    predict.add_argument("model", metavar="MODEL", help=f"{_MODEL}, or OWNER/NAME on the Hugging Face Hub")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes named for each (5)")
    predict.add_argument("--json", action="store_true")
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser("evaluate", help="measure exact top-1, top-5 and calibration error on shards")
    evaluate.add_argument("model", metavar="MODEL", help=f"{_MODEL}, or OWNER/NAME on the Hugging Face Hub")
    evaluate.add_argument("shards", metavar="SHARDS", help="a folder of tars, or a pattern FOLDER/NAME-{000..009}.tar")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N", help="images per forward pass (256)")
    evaluate.add_argument(
        "--workers", type=int, default=min(4, os.cpu_count() or 1), metavar="N", help="loader processes"
    )
    evaluate.add_argument(
        "--capacity-factor", type=float, metavar="X", help="drop what exceeds this share of an expert's even load"
    )
    evaluate.add_argument("--priority", choices=("importance", "position"), default="importance", help="served first")
    evaluate.add_argument("--json", action="store_true", help="with the figures of every class")
    evaluate.set_defaults(run=_evaluate)


def _predict(args: argparse.Namespace) -> None:
    import torch

    from sparse_mlp_ds.data.defects import BadSampleError

    if args.top < 1:
        raise UserError("predict: --top is at least 1")
    model = _classifier(args.model)
    answers, unread = [], []
    for start in range(0, len(args.images), 32):
        ready, tensors = [], []
        for path in args.images[start : start + 32]:
            try:
                tensors.append(model.preprocess([path]))
                ready.append(path)
            except BadSampleError as error:
                unread.append(f"{path}: {error}")
            except OSError as error:
                unread.append(f"{path}: cannot be read ({error.strerror}); give an image file")
        if ready:
            with torch.no_grad():
                shares = model(torch.cat(tensors)).float().softmax(dim=1)
            likeliest = shares.topk(min(args.top, len(model.classes)), dim=1)
            for path, values, numbers in zip(ready, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
                named = [
                    {"class": number, "name": model.classes[number], "probability": value}
                    for value, number in zip(values, numbers, strict=True)
                ]
                answers.append({"image": str(path), "classes": named})
    if args.json:
        print(json.dumps(answers, indent=1))
    elif answers:
        _print(answers)
    if unread:
        raise UserError("\n".join(unread))


def _print(answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("image", "class", "name", "probability"):
        table.add_column(column, justify="right" if column in ("class", "probability") else "left", overflow="fold")
    for answer in answers:
        for place, one in enumerate(answer["classes"]):
            last = one is answer["classes"][-1]
            shown = (
                answer["image"] if place == 0 else "",
                one["class"],
                one["name"],
                f"{100 * one['probability']:.2f} %",
            )
            table.add_row(*(Text(str(value)) for value in shown), end_section=last)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _evaluate(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.data.sources import open_sources
    from sparse_mlp_ds.recipe import Data
    from sparse_mlp_ds.train.evaluate import outcomes

    if args.batch_size < 1 or args.workers < 0:
        raise UserError("evaluate: --batch-size is at least 1, --workers at least 0")
    if args.capacity_factor is not None and not 0 < args.capacity_factor < float("inf"):
        raise UserError("evaluate: --capacity-factor is a positive number; leave it out to drop nothing")
    model = _classifier(args.model, capacity_factor=args.capacity_factor, priority=args.priority)
    pixels = model.config.data.model_dump()
    data = Data(train=args.shards, val=args.shards, classes=len(model.classes), workers=args.workers, **pixels)
    index = join(open_sources(data, data.val))
    if len(index.classes) != len(model.classes):
        raise UserError(
            f"{args.shards}: {len(index.classes)} classes, {args.model} knows {len(model.classes)}; "
            "give the shards that it was trained for, or fine-tune it on these"
        )
    numbers = [str(number) for number in range(len(model.classes))]
    other = [pair for pair in zip(model.classes, index.classes, strict=True) if pair[0] != pair[1]]
    if other and list(model.classes) != numbers and index.classes != numbers:
        print(f"WARNING: the model's class {other[0][0]!a} is the shards' {other[0][1]!a}", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # images that are not counted are named there
        size = model.config.spec.image_size
        (outcome,) = outcomes(lambda images: model(images).float(), index, data, size, args.batch_size)
    metrics = outcome.metrics()
    if args.json:
        by_class = {"classes": list(model.classes), "top1_by_class": outcome.per_class()}
        print(json.dumps(metrics | by_class, indent=1))
        return
    top1, top5, ece = (100 * metrics[key] for key in ("top1", "top5", "ece"))
    print(f"{metrics['images']} images: top-1 {top1:.2f} %, top-5 {top5:.2f} %, calibration error {ece:.2f} %")


def _classifier(name: str, **routing: Any) -> Any:
    """Read a model, say what was passed over on the way, and put it on the device. Raises UserError without a head."""
    from sparse_mlp_ds.dist import device
    from sparse_mlp_ds.hub import SparseVisionModel

    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", RuntimeWarning)
        model = SparseVisionModel.from_pretrained(name, **routing)
    for remark in remarks:
        print(f"WARNING: {remark.message}", file=sys.stderr)
    if not model.classes:
        raise UserError(f"{name}: a model without a head, from before fine-tuning; fine-tune it first")
    return model.to(device())
