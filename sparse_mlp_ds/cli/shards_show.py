"""`sparse-mlp-ds shards show`: what a network is trained on, images as a contact sheet and text as text."""

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_mlp_ds import files
from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from sparse_mlp_ds.config.recipe import Recipe
    from sparse_mlp_ds.config.stages import TrainingStage

_PICTURE = Path("views.png")
_PAGES = (".txt", ".html")


def add_to(actions: Any) -> None:
    """Add `show` to the actions of `shards`. actions: argparse's sub-parsers."""
    show = actions.add_parser(
        "show",
        help="draw the images that a network is trained on, as a contact sheet; print rows of tokens as text",
        description="Draws the first images of an epoch as the network gets them: one row per image, with its class "
        "and key, first as evaluation crops it, then every augmented view of the stage. Below a mixed image stands "
        "what it was mixed with, and in which shares. Rows of tokens are printed as text, with the masked places of a "
        "stage of kind mlm: {token>what the model sees}, or {token} where it stays.",
    )
    show.add_argument("recipe", type=as_location, metavar="RECIPE", help="name of a shipped recipe, or a YAML file")
    show.add_argument("--stage", help="training stage whose views are drawn (default: the recipe's first)")
    show.add_argument(
        "--images", type=int, default=8, metavar="N", help="even number of images, or number of rows (default: 8)"
    )
    show.add_argument("--epoch", type=int, default=0, metavar="N", help="epoch, counted from 0 (default: 0)")
    show.add_argument(
        "--out",
        type=as_path,
        metavar="FILE",
        help="picture to write; its suffix says the format (default: views.png). Text goes into a .txt or .html file "
        "(default: it is printed)",
    )
    show.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the recipe, written with dots, for example train.seed=1; may be given several times",
    )
    show.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> None:
    from sparse_mlp_ds.config.loading import load_recipe
    from sparse_mlp_ds.config.stages import TrainingStage
    from sparse_mlp_ds.models.text_spec import TextSpec
    from sparse_mlp_ds.shards import embedded

    recipe = load_recipe(args.recipe, args.set)
    stages = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)}
    name = args.stage or next(iter(stages))
    if name not in stages:
        raise UserError(f"shards show: --stage {name} is no training stage; {did_you_mean(name, stages)}")
    of_text = isinstance(recipe.spec, TextSpec)
    if args.images < 1 or args.epoch < 0 or (not of_text and args.images % 2):
        raise UserError("shards show: --images is even and at least 2, --epoch at least 0")
    if of_text and args.out and args.out.suffix.lower() not in _PAGES:
        raise UserError(f"--out {args.out}: text goes into a {' or '.join(_PAGES)} file")
    if recipe.data.embedded:
        embedded.make_for(recipe.data)
    if of_text:
        _show_text(args, recipe, name, stages[name])
    else:
        _show_images(args, recipe, stages[name])


def _show_text(args: argparse.Namespace, recipe: "Recipe", name: str, stage: "TrainingStage") -> None:
    """Print or write the rows of a stage. name: the stage's."""
    from sparse_mlp_ds.cli import text_sheet

    rows = text_sheet.rows(recipe, stage, args.images, args.epoch)
    if args.out is None:
        print("\n".join(row.plain() for row in rows), end="")
        return
    title = f"{recipe.name}, stage {name}, epoch {args.epoch}"
    is_page = args.out.suffix.lower() == ".html"
    files.replace(
        files.real(args.out), text_sheet.page(rows, title) if is_page else "\n".join(row.plain() for row in rows)
    )
    print(f"{args.out}: {len(rows)} rows of tokens as text")


def _show_images(args: argparse.Namespace, recipe: "Recipe", stage: "TrainingStage") -> None:
    """Draw the images of a stage."""
    from PIL import Image

    from sparse_mlp_ds.cli.contact_sheet import draw

    out = args.out or _PICTURE
    sheet, content = draw(recipe, stage, args.images, args.epoch).page, io.BytesIO()
    try:
        sheet.save(content, Image.registered_extensions()[out.suffix.lower()])
    except (KeyError, OSError, ValueError):  # a format that Pillow can only read, or that cannot hold these pixels
        raise UserError(f"--out {out}: '{out.suffix}' is no format for this picture; use .png") from None
    files.replace(files.real(out), content.getvalue())
    print(f"{out}: one row per image, first as evaluation crops it, then every view of the stage")
