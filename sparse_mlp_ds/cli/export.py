"""`sparse-mlp-ds export` and `import`: write a trained or a downloaded model as a folder that can be given away."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds.config.arguments import as_path
from sparse_mlp_ds.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparse_mlp_ds.hub.load import LoadedModel

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def add_to(commands: Any) -> None:
    """Add `export` and `import` to the command line. commands: argparse's sub-parsers."""
    export = commands.add_parser(
        "export",
        help="write the model of a run or a checkpoint as a folder to give away",
        description="Writes the model of a run or a checkpoint as a folder with model.safetensors (or a graph that "
        "other programs run: model.onnx or model.pt2), config.json, README.md and, for text, tokenizer.model. Of a "
        "run, the newest complete checkpoint is used, even if its stage is not finished.",
    )
    export.add_argument(
        "source", type=as_path, metavar="RUN_OR_CHECKPOINT", help="folder of a run, or folder of one checkpoint"
    )
    export.add_argument("out", type=as_path, metavar="OUT", help="folder to write; an earlier export there is replaced")
    export.add_argument(
        "--format",
        choices=("safetensors", "onnx", "pt2"),
        default="safetensors",
        help="safetensors for this package, onnx for ONNX Runtime and others, pt2 for torch.export; a graph runs all "
        "experts on all items, takes any number of images, and is compared with the model (default: safetensors)",
    )
    _add_dtype(export)
    export.add_argument(
        "--tokenizer",
        type=as_path,
        metavar="FILE",
        help="tokenizer.model of the data, for a run or checkpoint of text that has none beside it",
    )
    export.add_argument(
        "--online",
        action="store_true",
        help="export the trained weights themselves; without this flag, their average is exported if the stage has one",
    )
    which = export.add_mutually_exclusive_group()
    which.add_argument(
        "--stage",
        metavar="NAME",
        help="export the network of this stage of the recipe, from its newest checkpoint in the run; of a probe, with "
        "its best linear head",
    )
    which.add_argument(
        "--best",
        action="store_true",
        help="export the checkpoint of the run's best validation, which a stage with keep_best: true keeps",
    )
    export.set_defaults(run=_export)

    imported = commands.add_parser(
        "import",
        help="write weights of timm, of Google's Mixer or of this package in the form of an export",
        description="Writes a file of weights as a folder like that of an export. timm's and Google's Mixers were "
        "trained on images with mean and std 0.5 and are used with crop_fraction 0.875, so these are assumed for their "
        "files unless --set says something else.",
    )
    imported.add_argument("file", type=as_path, metavar="FILE", help=".safetensors or .npz file of weights")
    imported.add_argument(
        "out", type=as_path, metavar="OUT", help="folder to write; an earlier export there is replaced"
    )
    imported.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="name of the model, one of those that `sparse-mlp-ds models` lists",
    )
    imported.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the model, its routing or its images, written with dots: model.KEY, moe.KEY, data.mean, "
        "data.std or data.crop_fraction; may be given several times",
    )
    imported.add_argument(
        "--classes", type=as_path, metavar="FILE", help="text file with one class name per line, or an index.json"
    )
    imported.add_argument(
        "--resize",
        default="bilinear",
        metavar="METHOD",
        help="how weights that depend on the image size are resized if the model's image_size differs: bilinear, "
        "bicubic or block (default: bilinear)",
    )
    imported.add_argument(
        "--tokenizer", type=as_path, metavar="FILE", help="tokenizer.model that made the tokens of a model of text"
    )
    _add_dtype(imported)
    imported.set_defaults(run=_import)


def _add_dtype(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="fp32",
        help="number format of the weights; routers always stay in fp32 (default: fp32)",
    )


def _export(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.hub.graph import check_packages
    from sparse_mlp_ds.hub.load import load_model
    from sparse_mlp_ds.hub.save import check_target, write_export
    from sparse_mlp_ds.weights import locate

    check_target(args.out)
    if args.format != "safetensors" and args.dtype != "fp32":
        raise UserError(f"--dtype {args.dtype}: a graph is of fp32; leave it out, or use --format safetensors")
    if args.format == "onnx":
        check_packages()
    if locate.kind(args.source) == "export" and args.format == "safetensors":
        raise UserError(f"{args.source}: is an export already; give the folder of a run or of a checkpoint")
    loaded = load_model(args.source, args.online, args.best, args.stage, args.tokenizer)
    for line in loaded.remarks:
        print(f"WARNING: {line}")
    config = loaded.config.model_copy(update={"dtype": _DTYPES[args.dtype]})
    if args.format == "safetensors":
        write_export(args.out, config, loaded.weights, loaded.tokenizer)
    else:
        _write_graph(args.out, loaded, args.format)
    origin = config.origin
    trained = "" if origin.stage is None else f" of stage {origin.stage} at step {origin.step}"
    tensors = f"{len(loaded.weights)} tensors of {config.dtype}"
    print(f"{args.out}: {config.name}, {tensors}, the {origin.weights} weights{trained}")


def _write_graph(out: Path, loaded: "LoadedModel", format: str) -> None:
    """Write an export of format `onnx` or `pt2`. Raises RunError if the graph's outputs are not the model's."""
    from sparse_mlp_ds.hub import SparseTextModel, any_model, graph
    from sparse_mlp_ds.hub.save import write_folder
    from sparse_mlp_ds.weights.locate import GRAPHS

    model = any_model.from_loaded(loaded)
    write = {"onnx": graph.write_onnx, "pt2": graph.write_pt2}[format]
    write_folder(out, loaded.config, lambda folder: write(model, folder / GRAPHS[format]), format, loaded.tokenizer)
    samples = "rows" if isinstance(model, SparseTextModel) else "images"
    print(f"{out}: {GRAPHS[format]} was compared with the model on batches of 1 and 3 {samples}")


def _import(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.data import class_names
    from sparse_mlp_ds.hub.import_weights import import_file
    from sparse_mlp_ds.hub.save import check_target, write_export
    from sparse_mlp_ds.models import registry
    from sparse_mlp_ds.models.text_spec import TextSpec

    check_target(args.out)
    classes = class_names.read(args.classes) if args.classes else None
    if isinstance(registry.preset(args.model), TextSpec):
        _import_text(args, classes)
        return
    if args.tokenizer:
        raise UserError(f"--model {args.model}: takes images, which have no tokenizer; leave out --tokenizer")
    config, weights, coverage = import_file(args.file, args.model, args.set, classes, args.resize)
    write_export(args.out, config.model_copy(update={"dtype": _DTYPES[args.dtype]}), weights)
    print(coverage.table())
    data = config.data
    print(
        f"{args.out}: {config.name}, {len(config.classes)} classes; images of {config.spec.image_size} pixels, "
        f"mean {list(data.mean)}, std {list(data.std)}, crop_fraction {data.crop_fraction:g}"
    )


def _import_text(args: argparse.Namespace, classes: "Sequence[str] | None") -> None:
    from sparse_mlp_ds.hub.import_text import import_text
    from sparse_mlp_ds.hub.save import write_export

    config, weights, coverage, tokenizer = import_text(args.file, args.model, args.tokenizer, args.set, classes)
    write_export(args.out, config.model_copy(update={"dtype": _DTYPES[args.dtype]}), weights, tokenizer)
    print(coverage.table())
    what = {"masked": "a masked language model", "classes": f"{len(config.classes)} classes"}
    rows = f"rows of {config.spec.length} tokens out of {config.spec.vocabulary}"
    print(f"{args.out}: {config.name}, {what.get(config.task, 'features of rows')}; {rows}")
