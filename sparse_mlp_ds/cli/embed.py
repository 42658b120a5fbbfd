"""`sparse-mlp-ds embed`: the features of images or rows of text, as an array that NumPy reads."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.cli.predict import MODEL
from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError, of_system

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from sparse_mlp_ds.data.index import Index
    from sparse_mlp_ds.hub import AnyModel, SparseTextModel

NAMES = ".names.json"
"""End of the name of the file with the images' names, in place of .npy."""


def add_to(commands: Any) -> None:
    """Add `embed` to the command line. commands: argparse's sub-parsers."""
    embed = commands.add_parser(
        "embed",
        help="write the features of images, or of rows of text, as a NumPy array",
        description="Writes the pooled features of images, from which the model's head computes its logits: an array "
        "[N, C] of float32, and beside it a JSON list of the N images' names, FILE.names.json for FILE.npy. Row n "
        "belongs to name n. Images come in the order in which they are given; those of a folder in the order of their "
        "paths, those of tars in the order of their index or else by name and place in the tar. An image that cannot "
        "be read has no row; it is named, and the exit code is then 2. A model of text takes folders of rows of tokens "
        "that `shards make text` has written.",
    )
    embed.add_argument("model", type=as_location, metavar="MODEL", help=MODEL)
    embed.add_argument(
        "images",
        nargs="+",
        type=as_path,
        metavar="IMAGES",
        help="image, folder of images (of any depth), tar, folder of tars, or folder with an index.json; for a model "
        "of text, folder of rows with an index.json",
    )
    embed.add_argument("--out", type=as_path, required=True, metavar="FILE", help="array to write; it ends in .npy")
    embed.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples per forward pass (default: 64)")
    embed.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="processes that decode images; 0 decodes them in the main process (default: %(default)s)",
    )
    embed.set_defaults(run=_embed)


def _embed(args: argparse.Namespace) -> None:
    import numpy as np

    from sparse_mlp_ds.cli.predict import open_model
    from sparse_mlp_ds.hub import SparseTextModel

    if args.batch_size < 1 or args.workers < 0:
        raise UserError("embed: --batch-size is at least 1, --workers at least 0")
    if args.out.suffix != ".npy" or args.out.is_dir():
        raise UserError(f"--out {args.out}: give the name of a file that ends in .npy")
    files.check_writable(args.out.parent, "--out")
    model = open_model(args.model)
    index = _rows_of(args, model) if isinstance(model, SparseTextModel) else _images_of(args.images)
    what = "rows" if index.text else "images"
    with redirect_stdout(sys.stderr):  # which names the images that have no row
        features, names = _features(model, index, args.batch_size, args.workers)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(args.out) as array, files.replacing(args.out.with_suffix(NAMES)) as list_of_names:
            list_of_names.write(json.dumps(names, indent=0).encode())
            np.save(array, features)
    except OSError as error:
        raise of_system(error, args.out) from None
    print(f"{args.out}: {len(features)} {what}, {features.shape[1]} features of each")
    if missing := len(index) - len(names):
        raise UserError(f"{missing} of {len(index)} {what}, named above, cannot be read and have no row in {args.out}")


def _images_of(paths: "list[Path]") -> "Index":
    """Return the images at some paths, and print what was passed over. Raises UserError."""
    from sparse_mlp_ds.data.index import join
    from sparse_mlp_ds.shards.any_images import index_of
    from sparse_mlp_ds.shards.passed_over import PassedOver

    passed_over = PassedOver()
    index = join([index_of(path, passed_over) for path in paths])
    for line in passed_over.lines():
        print(f"WARNING: {line}", file=sys.stderr)
    return index


def _rows_of(args: argparse.Namespace, model: "SparseTextModel") -> "Index":
    """Return the rows of tokens in folders. Raises UserError unless they are those that a model takes."""
    from sparse_mlp_ds.cli.evaluate_text import check_rows
    from sparse_mlp_ds.data import index as index_file

    indexes = [index_file.load(path) for path in args.images]
    for index in indexes:
        check_rows(index, model, args.model)
    return index_file.join(indexes)


def _features(model: "AnyModel", index: "Index", batch_size: int, workers: int) -> "tuple[np.ndarray, list[str]]":
    """Return features [N, C] float32 and names of the N images of an index that can be read, in its order."""
    import numpy as np
    import torch

    from sparse_mlp_ds.data.config import Data, Source
    from sparse_mlp_ds.hub.config import ModelConfig
    from sparse_mlp_ds.shards.any_images import name_of
    from sparse_mlp_ds.train import evaluate

    config = model.config
    pixels, size = (config.data.model_dump(), config.spec.image_size) if isinstance(config, ModelConfig) else ({}, None)
    data = Data(train=(Source(path="unused"),), workers=workers, bad_limit=1.0, **pixels)
    rows, names = [np.zeros((0, config.spec.width), np.float32)], list[str]()
    with torch.no_grad():
        for inputs, _, numbers in evaluate.batches(index, data, size, batch_size):
            real = numbers >= 0  # the rest are padding, and images that cannot be read
            rows.append(model.forward_features(inputs)[real].float().cpu().numpy())
            names += [name_of(*index.locate(number)) for number in numbers[real].tolist()]
    return np.concatenate(rows), names
