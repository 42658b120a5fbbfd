"""`sparse-mlp-ds export` and `import`: a model out of a run, or out of a file of others, as a folder to give away."""

import argparse
from pathlib import Path
from typing import Any

from sparse_mlp_ds.errors import UserError

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def add_to(commands: Any) -> None:
    """Add both to the command line."""
    export = commands.add_parser(
        "export",
        help="write a run's model as one safetensors file and config.json",
        description="Of a run, the newest complete checkpoint is taken, in the middle of a stage too.",
    )
    export.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a folder")
    export.add_argument("out", type=Path, metavar="OUT", help="the folder to write, or an earlier export to replace")
    export.add_argument("--dtype", choices=_DTYPES, default="fp32", help="of the weights, routers aside (fp32)")
    export.add_argument("--online", action="store_true", help="the weights themselves, not their average")
    export.set_defaults(run=_export)

    imported = commands.add_parser(
        "import",
        help="write timm's or Google's Mixer, or an own file, in the same form",
        description="Published Mixers want mean and std 0.5 and crop_fraction 0.875: that is assumed of timm's and "
        "Google's files, and what --set says comes first.",
    )
    imported.add_argument("file", type=Path, metavar="FILE", help=".safetensors or .npz")
    imported.add_argument("out", type=Path, metavar="OUT")
    imported.add_argument("--model", required=True, metavar="NAME", help="registered model, see `sparse-mlp-ds models`")
    imported.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="model.KEY, moe.KEY, data.mean, ... (dotted)"
    )
    imported.add_argument("--classes", type=Path, metavar="FILE", help="class names, one per line")
    imported.add_argument("--resize", default="bilinear", help="to another image_size: bilinear, bicubic or block")
    imported.add_argument("--dtype", choices=_DTYPES, default="fp32", help="of the weights, routers aside (fp32)")
    imported.set_defaults(run=_import)


def _export(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.hub.folder import check, write
    from sparse_mlp_ds.hub.opening import open_model
    from sparse_mlp_ds.weights import places

    check(args.out)
    if places.kind(args.source) == "export":
        raise UserError(f"{args.source}: an export already; give a run's folder or a checkpoint's")
    opened = open_model(args.source, args.online)
    for remark in opened.remarks:
        print(f"WARNING: passed over {remark}")
    config = opened.config.model_copy(update={"dtype": _DTYPES[args.dtype]})
    write(args.out, config, opened.weights)
    origin = config.origin
    print(
        f"{args.out}: {config.name}, {len(opened.weights)} tensors of {config.dtype}, the {origin.weights} weights "
        f"of stage {origin.stage} at step {origin.step}"
    )


def _import(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.hub.folder import check, write
    from sparse_mlp_ds.hub.importing import import_file

    check(args.out)
    config, weights, coverage = import_file(args.file, args.model, args.set, _names(args.classes), args.resize)
    write(args.out, config.model_copy(update={"dtype": _DTYPES[args.dtype]}), weights)
    print(coverage.table())
    data = config.data
    print(
        f"{args.out}: {config.name}, {len(config.classes)} classes; images of {config.spec.image_size} pixels, "
        f"mean {list(data.mean)}, std {list(data.std)}, crop_fraction {data.crop_fraction:g}"
    )


def _names(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"--classes {path}: {error.strerror}; give a file with one name per line") from None
    except UnicodeDecodeError:
        raise UserError(f"--classes {path}: not UTF-8 text; give a file with one name per line") from None
