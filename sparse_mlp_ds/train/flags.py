"""The trainer's flags; nothing large is imported to read or to explain them."""

import argparse
import re

from sparse_mlp_ds import __version__
from sparse_mlp_ds.config.arguments import DEFAULT_RECIPE, as_location


def parse(arguments: list[str], program: str = "train.py") -> argparse.Namespace:
    """Return the command line's flags; there are no others, every other setting is in the recipe or the JSON."""
    parser = flags(program)
    args = parser.parse_args(arguments)
    if args.device_memory and not args.check:
        parser.error("--device-memory: only --check takes it; a run uses the devices that it finds")
    return args


def flags(program: str) -> argparse.ArgumentParser:
    """Return the parser of the command line. program: name of the command in its usage text."""
    parser = argparse.ArgumentParser(
        prog=program, description="Train, fine-tune and evaluate as a recipe says.", allow_abbrev=False
    )
    parser.add_argument(
        "--recipe", type=as_location, default=DEFAULT_RECIPE, help="name of a shipped recipe, or path of a YAML file"
    )
    parser.add_argument(
        "--ds_config", type=as_location, help="DeepSpeed JSON: a shipped one's name, such as moe, or a file's path"
    )
    parser.add_argument("--out", type=as_location, help="run folder (default: runs/<recipe>)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the recipe, written with dots, for example train.seed=1; may be given several times",
    )
    parser.add_argument(
        "--ds",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the DeepSpeed JSON, such as zero_optimization.stage=2; may be given several times",
    )
    parser.add_argument(
        "--resume",
        type=as_location,
        default="auto",
        help="auto: continue from the newest checkpoint of the run folder, if there is one; never: start over and set "
        "an earlier run aside; or the path of a checkpoint (default: auto)",
    )
    parser.add_argument(
        "--check", action="store_true", help="read and check everything, print what the run would do, and stop"
    )
    parser.add_argument(
        "--device-memory",
        type=_bytes,
        metavar="SIZE",
        help="with --check: plan for GPUs of this memory, for example 80GB, which this machine need not have",
    )
    parser.add_argument("--version", action="version", version=f"sparse-mlp-ds {__version__}")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    return parser


def _bytes(text: str) -> int:
    """Return the bytes of a size such as 80GB or 79.6GiB."""
    units = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    size = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(units)})", text)
    if size is None or not float(size[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 80GB, not {text!r}")
    return int(float(size[1]) * units[size[2]])
