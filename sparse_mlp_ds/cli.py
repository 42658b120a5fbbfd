"""`sparse-mlp-ds`: what is done around training.

Exit codes: 0 done, 1 a run of a sweep failed or `checkpoint diff` found other weights, 2 bad usage or input, or
something that `doctor` found wrong.
"""

import argparse
import json
import sys

from sparse_mlp_ds import (
    checkpoint_commands,
    doctor_commands,
    export_commands,
    predict_commands,
    shards_commands,
    sweep_commands,
)
from sparse_mlp_ds.errors import RunError, UserError


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script. arguments: instead of those that the process was given."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except UserError as error:
        sys.exit(_explain(error))
    except RunError as error:
        _explain(error)
        sys.exit(1)
    except OSError as error:
        sys.exit(_explain(UserError(f"{error.filename or 'sparse-mlp-ds'}: {error.strerror or error}")))


def _explain(error: Exception) -> int:
    print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparse-mlp-ds", description="Shards, models, checkpoints and sweeps of sparse_mlp_ds."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the registered models")
    models.add_argument("--json", action="store_true")
    models.set_defaults(run=_models)

    shards_commands.add_to(commands)
    sweep_commands.add_to(commands)
    checkpoint_commands.add_to(commands)
    export_commands.add_to(commands)
    predict_commands.add_to(commands)
    doctor_commands.add_to(commands)
    return parser


def _models(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from sparse_mlp_ds.models import macs, registry

    rows = []
    for name, spec in registry.PRESETS.items():
        shape = {key: getattr(spec, key) for key in ("depth", "width", "image_size", "patch_size")}
        rows.append({"name": name, "family": spec.family} | asdict(macs.cost(spec)) | shape)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title="registered models, without classifier head", box=None, padding=(0, 1, 0, 0))
    for key, value in rows[0].items():
        text = isinstance(value, str)
        table.add_column(key.replace("_", " "), justify="left" if text else "right", no_wrap=text)
    for row in rows:
        short = {key: f"{row[key] / 1e6:.2f}M" for key in ("params", "params_active")}
        short["macs"] = f"{row['macs'] / 1e9:.2f}G"
        table.add_row(*(str(value) for value in (row | short).values()))
    Console().print(table)


if __name__ == "__main__":
    main()
