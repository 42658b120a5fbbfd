"""`sparse-mlp-ds predict` and `evaluate`: what a trained model finds in images or texts, and how often it is right."""

import argparse
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.cli import predict_text
from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from sparse_mlp_ds.hub import AnyModel, SparseVisionModel

MODEL = "folder of an export, a run or a checkpoint, OWNER/NAME of an export on the Hugging Face Hub, or cifar10, \
which comes with the package"
"""Help text of the argument MODEL."""
_IMAGES_PER_PASS = 32


def add_to(commands: Any) -> None:
    """Add `predict` and `evaluate` to the command line. commands: argparse's sub-parsers."""
    predict = commands.add_parser(
        "predict",
        help="name the most likely classes of images or texts, hidden words, or the answer to a question",
        description="Prints the most likely classes of each image with their probabilities; of a folder, of all images "
        "in it and below it, in the order of their paths. An image that cannot be read is named, and the exit code is "
        "then 2; the other images are answered. A model of text is given --text or --question instead: a masked "
        "language model names the most likely tokens at each [MASK] of a text, a classifier the classes, and a model "
        "of answers the part of --context that answers a question.",
    )
    predict.add_argument("model", type=as_location, metavar="MODEL", help=MODEL)
    predict.add_argument(
        "images",
        nargs="*",
        type=as_path,
        metavar="IMAGE",
        help="image (JPEG, PNG, WebP and others), or folder of images of any depth",
    )
    predict_text.add_to(predict)
    predict.add_argument(
        "--top", type=int, default=5, metavar="N", help="number of classes or tokens for each (default: 5)"
    )
    predict.add_argument("--json", action="store_true", help="print them as JSON instead of a table")
    predict.set_defaults(run=_predict)

    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model's exact accuracy and calibration error, or its perplexity, on shards",
        description="Measures top-1 and top-5 accuracy and expected calibration error over all images of SHARDS, as "
        "the evaluate stage of a recipe does. Of a masked language model, it measures perplexity and top-1 of masked "
        "tokens over all rows; of a model of answers, exact matches and F1.",
    )
    evaluate.add_argument("model", type=as_location, metavar="MODEL", help=MODEL)
    evaluate.add_argument(
        "shards",
        type=as_location,
        metavar="SHARDS",
        help="folder with an index.json; folder with val/ or train/ that have one, of which val/ is taken if it is "
        "there; or a pattern such as FOLDER/NAME-{000000..000009}.tar",
    )
    evaluate.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="samples per forward pass (default: 256)"
    )
    evaluate.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that decode images; 0 decodes them in the main process (default: %(default)s)",
    )
    evaluate.add_argument(
        "--capacity-factor",
        type=float,
        metavar="X",
        help="limit each expert to X times its even share of an image's items, and drop the rest; without this flag, "
        "nothing is dropped",
    )
    evaluate.add_argument(
        "--priority",
        choices=("importance", "position"),
        default="importance",
        help="which items an expert takes first if --capacity-factor limits it: those with the largest router "
        "probability, or those that come first in the image (default: importance)",
    )
    evaluate.add_argument(
        "--json", action="store_true", help="print all figures as JSON, with the accuracy of every class"
    )
    evaluate.set_defaults(run=_evaluate)


def _predict(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.hub import SparseTextModel

    if args.top < 1:
        raise UserError("predict: --top is at least 1")
    if args.images and predict_text.is_asked(args):
        raise UserError("predict: images and texts are for different models; give images, or --text, or --question")
    paths = _images(args.images)
    model = open_model(args.model, tokenizer=args.tokenizer)
    if predict_text.is_asked(args) or isinstance(model, SparseTextModel):
        predict_text.run(args, model)
        return
    if not paths:
        raise UserError("predict: give images, or folders of images")
    _check_classes(args.model, model)
    answers: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for start in range(0, len(paths), _IMAGES_PER_PASS):
        answers += _answers(model, paths[start : start + _IMAGES_PER_PASS], args.top, unreadable)
    if args.json:
        print(json.dumps(answers, indent=1))
    elif answers:
        _print(answers)
    if unreadable:
        raise UserError("\n".join(unreadable))


def _images(given: list[Path]) -> list[Path]:
    """Return the images that are given, and in place of a folder all images in it and below it. Raises UserError."""
    from sparse_mlp_ds.shards.image_folder import every_image
    from sparse_mlp_ds.shards.passed_over import PassedOver

    passed_over = PassedOver()
    found = [image for path in given for image in (every_image(path, passed_over) if path.is_dir() else [path])]
    for line in passed_over.lines():
        print(f"WARNING: {line}", file=sys.stderr)
    return found


def _answers(model: "SparseVisionModel", paths: list[Path], top: int, unreadable: list[str]) -> list[dict[str, Any]]:
    """Return the most likely classes of each image that can be read; the other images are added to `unreadable`.

    Args:
        model: The classifier.
        paths: The images' files.
        top: Number of classes for each image.
        unreadable: List of error messages.
    """
    import torch

    from sparse_mlp_ds.data.bad_samples import BadSampleError
    from sparse_mlp_ds.data.reads import reading

    readable, tensors = [], []
    for path in paths:
        try:
            with reading(str(path)):
                tensors.append(model.preprocess([path]))
            readable.append(path)
        except BadSampleError as error:
            unreadable.append(f"{path}: {error}")
        except OSError as error:
            unreadable.append(f"{path}: cannot be read ({error.strerror}); give an image file")
    if not readable:
        return []
    with torch.no_grad():
        probabilities = model(torch.cat(tensors)).float().softmax(dim=1)
    likeliest = probabilities.topk(min(top, len(model.classes)), dim=1)
    return [
        {
            "image": str(path),
            "classes": [
                {"class": number, "name": model.classes[number], "probability": value}
                for value, number in zip(values, numbers, strict=True)
            ],
        }
        for path, values, numbers in zip(readable, likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]


def _print(answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in ("image", "class", "name", "probability"):
        table.add_column(column, justify="right" if column in ("class", "probability") else "left", overflow="fold")
    for answer in answers:
        for rank, named in enumerate(answer["classes"]):
            is_last = named is answer["classes"][-1]
            cells = (
                answer["image"] if rank == 0 else "",
                named["class"],
                named["name"],
                f"{100 * named['probability']:.2f} %",
            )
            table.add_row(*(Text(str(cell)) for cell in cells), end_section=is_last)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _evaluate(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.cli import evaluate_text
    from sparse_mlp_ds.data.class_names import ClassList, agree
    from sparse_mlp_ds.data.config import Data, Source
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.data.sources import open_sources, remarks
    from sparse_mlp_ds.hub import SparseTextModel
    from sparse_mlp_ds.train.evaluate import outcomes

    if args.batch_size < 1 or args.workers < 0:
        raise UserError("evaluate: --batch-size is at least 1, --workers at least 0")
    if args.capacity_factor is not None and not 0 < args.capacity_factor < float("inf"):
        raise UserError("evaluate: --capacity-factor is a positive number; leave it out to drop nothing")
    model = open_model(args.model, capacity_factor=args.capacity_factor, priority=args.priority)
    if isinstance(model, SparseTextModel):
        evaluate_text.run(args, model, _data_set(args.shards))
        return
    _check_classes(args.model, model)
    pixels, shards = model.config.data.model_dump(), _data_set(args.shards)
    data = Data(train=(Source(path=shards),), classes=len(model.classes), workers=args.workers, **pixels)
    index = join(open_sources(data, data.train))
    lists = [ClassList(args.model, model.classes), ClassList(shards, index.classes)]
    of_classes = agree(lists, len(model.classes), f"{args.model} knows {len(model.classes)} classes")[1]
    for remark in (*remarks(data.train), *of_classes):
        print(f"WARNING: {remark}", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # which names the images that are not counted
        size = model.config.spec.image_size
        (outcome,) = outcomes(lambda images: model(images).float(), index, data, size, args.batch_size)
    metrics = outcome.metrics()
    if args.json:
        by_class = {"classes": list(model.classes), "top1_by_class": outcome.per_class()}
        print(json.dumps(metrics | by_class, indent=1))
        return
    names = {"top1": "top-1", "top5": "top-5", "ece": "calibration error"}
    shares = ", ".join(f"{name} {100 * metrics[key]:.2f} %" for key, name in names.items() if key in metrics)
    print(f"{metrics['images']} images: {shares}")


def _data_set(shards: str) -> str:
    """Return which data set is measured: the one that is given, or the one in its folder val/ or train/."""
    from sparse_mlp_ds.data.index import FILE_NAME

    folder = Path(shards)
    if folder.is_dir() and not (folder / FILE_NAME).exists():
        for split in ("val", "train"):
            if (folder / split / FILE_NAME).exists():
                print(f"{shards}: measuring {split}/", file=sys.stderr)
                return str(folder / split)
    return shards


def _check_classes(name: str, model: "SparseVisionModel") -> None:
    """Raise UserError if a model has no head. name: of the model, for the message."""
    if not model.classes:
        raise UserError(f"{name}: a model without a head; fine-tune it first")


def open_model(
    name: str, capacity_factor: float | None = None, priority: str = "importance", tokenizer: Path | None = None
) -> "AnyModel":
    """Read a model, print the warnings about it, and put it on the device. Raises UserError.

    Args:
        name: A folder, OWNER/NAME on the Hugging Face Hub, or a model that comes with the package.
        capacity_factor: Share of an expert's even load above which items are dropped; None drops nothing.
        priority: Which items an expert takes first.
        tokenizer: The tokenizer's file of a run or checkpoint of text that has none beside it.
    """
    from sparse_mlp_ds.distributed.process_group import device
    from sparse_mlp_ds.hub import from_pretrained

    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always", RuntimeWarning)
        model = from_pretrained(name, capacity_factor=capacity_factor, priority=priority, tokenizer=tokenizer)
    for remark in remarks:
        print(f"WARNING: {remark.message}", file=sys.stderr)
    return model.to(device())


def open_image_model(name: str) -> "SparseVisionModel":
    """Read a model as `open_model` does. Raises UserError if it takes text."""
    from sparse_mlp_ds.hub import SparseVisionModel
    from sparse_mlp_ds.hub.config import of_images

    model = open_model(name)
    of_images(model.config, name)
    assert isinstance(model, SparseVisionModel)
    return model
