"""`sparse-mlp-ds recipe`: list, show and compare recipes, write one for one's own images, and schemas for editors."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError


def add_to(commands: Any) -> None:
    """Add `recipe` to the command line. commands: argparse's sub-parsers."""
    recipe = commands.add_parser(
        "recipe",
        help="list, show, compare and write recipes",
        description="Lists, shows and compares recipes, writes one for one's own images, and prints the schemas by "
        "which editors complete and check them.",
    )
    actions = recipe.add_subparsers(required=True, metavar="ACTION")
    _add_list_and_show(actions)
    _add_diff(actions)
    _add_new(actions)
    schema = actions.add_parser(
        "schema",
        help="print the JSON schema of recipes, or of the DeepSpeed JSON",
        description="Prints the JSON schema of recipes. Editors with a YAML language server use it after this first "
        "line: # yaml-language-server: $schema=recipe.schema.json",
    )
    schema.add_argument("--ds_config", action="store_true", help="print the schema of the DeepSpeed JSON instead")
    schema.set_defaults(run=_schema)


def _add_list_and_show(actions: Any) -> None:
    listing = actions.add_parser(
        "list",
        help="list the shipped recipes",
        description="Lists the shipped recipes with their model, their stages and what they are.",
    )
    listing.set_defaults(run=_list)
    show = actions.add_parser(
        "show",
        help="print a recipe with every key",
        description="Prints a recipe with its base and all defaults filled in. The output is itself a recipe.",
    )
    show.add_argument("recipe", type=as_location, metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    show.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be given several times"
    )
    show.set_defaults(run=_show)


def _add_diff(actions: Any) -> None:
    diff = actions.add_parser(
        "diff",
        help="print the keys in which two recipes differ",
        description="Prints one line for each key in which two recipes differ, with both values; null is a "
        "key that is not given. RUN/config.yaml is a recipe too, the one that a run was started with.",
    )
    for name in ("first", "second"):
        diff.add_argument(name, type=as_location, metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    diff.set_defaults(run=_diff)


def _add_new(actions: Any) -> None:
    new = actions.add_parser(
        "new",
        help="write a recipe for one's own images",
        description="Writes a recipe for a data set that `sparse-mlp-ds shards make` has written: with its classes, "
        "its channels' mean and standard deviation, measured on 1,000 of its images, and a batch that fits into the "
        "memory of one GPU, or of this machine without one. Learning rate and length are a common start.",
    )
    new.add_argument("data", type=as_path, metavar="DATA", help="folder with the folders train and val")
    new.add_argument("--model", required=True, help="a registered model; `sparse-mlp-ds models` lists them")
    new.add_argument("--out", type=as_path, metavar="FILE", help="YAML file to write (default: DATA's name + .yaml)")
    new.add_argument("--pretrain", action="store_true", help="pretrain without labels (MoCo v3) before fine-tuning")
    new.set_defaults(run=_new)


def _list(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.config import loading

    for name in loading.RECIPES.names():
        recipe = loading.load_recipe(name)
        head = loading.RECIPES.path(name, "NAME").read_text(encoding="utf-8").split("\n#\n")[0]
        text = " ".join(line.lstrip("# ") for line in head.splitlines() if line.startswith("#"))
        print(f"{name}: {recipe.model['name']}; {', '.join(recipe.stages)}\n    {text}")


def _show(args: argparse.Namespace) -> None:
    import yaml

    from sparse_mlp_ds.config import loading

    tree = loading.load_recipe(args.recipe, args.set).model_dump(mode="json")
    sys.stdout.write(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def _diff(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.config import loading

    first, second = (loading.load_recipe(one).model_dump(mode="json") for one in (args.first, args.second))
    lines = []
    for name, stages, others in ((args.first, first, second), (args.second, second, first)):
        for stage in stages["stages"].keys() - others["stages"].keys():
            del stages["stages"][stage]
            lines.append(f"stages.{stage}: only in {name}")
    for key, before, now in loading.differences(first, second):
        lines.append(f"{key}: {json.dumps(before, ensure_ascii=False)} -> {json.dumps(now, ensure_ascii=False)}")
    print("\n".join(sorted(lines)) or "no difference")


def _new(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.train.new_recipe import write

    out = args.out or Path(f"{args.data.resolve().name}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: a recipe's file ends in .yaml; rename it")
    for remark in write(args.data, args.model, out, args.pretrain):
        print(remark)
    print(f"wrote {out}; next: deepspeed --num_gpus 1 --module sparse_mlp_ds.train --recipe {out} --ds_config moe")


def _schema(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.config import json_schema

    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed prints what it says on its import
        schema = json_schema.of_deepspeed_json() if args.ds_config else json_schema.of_recipes()
    print(json.dumps(schema, indent=2))
