"""A contact sheet of what the network is trained on: the crops and colours of an epoch's first samples, exactly."""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import ImageClassifierStage, TrainingStage
from sparse_mlp_ds.data import augment, few_labels, sources
from sparse_mlp_ds.data.index import UNLABELLED, Index, join
from sparse_mlp_ds.data.loader import Batch, ShardDataset, load
from sparse_mlp_ds.data.mixup import mix
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.spec import of_images

CELL = 160
"""Side of each image on the sheet, pixels. Smaller images are enlarged, without smoothing."""
_GAP = 6  # white pixels around images and texts
_FONT_SIZE = 13
_LINE = 17  # height of a line of text
_CHARACTERS = 30  # of a line of text
_LINES = 4  # of a class name or key, which may have any length


@dataclass(frozen=True)
class Sheet:
    """A drawn sheet."""

    page: Image.Image
    """The picture."""
    places: list[list[tuple[int, int]]]
    """Left and upper edge of each image, by row and column."""


def draw(recipe: Recipe, stage: TrainingStage, images: int, epoch: int) -> Sheet:
    """Return a sheet with one row per image: first as evaluation crops it, then every view of the stage.

    Each row begins with the image's class and key; below a mixed image stands which image it was mixed with, and its
    own share.

    Args:
        recipe: The recipe, whose data exist.
        stage: One of its training stages.
        images: Number of rows.
        epoch: Epoch of the stage whose first samples are drawn.

    Raises:
        UserError: The data cannot be read, or fill no batch.
    """
    found = sources.open_sources(recipe.data, recipe.data.train)
    indexes = few_labels.part(found, stage, recipe.train.seed)
    size, seed = of_images(recipe.spec).image_size, recipe.train.seed
    order = sources.training_order(recipe.data, indexes, stage.batch_size, seed)
    if not order.steps_per_epoch:
        raise UserError(f"batch_size {order.batch_size} exceeds the {order.samples} images of data.train; lower it")
    views = stage.crops
    indices = order.batch_indices(epoch * order.steps_per_epoch, 0, images)
    index, cache, fraction = join(indexes), sources.cache(recipe.data), recipe.data.crop_fraction
    plain, batch = (
        # The first column, too, gets the order, so that the same sample replaces a bad one in its whole row.
        next(load(ShardDataset(index, size, recipe.data.classes, drawn, seed, order, fraction, cache), [indices], 0))
        for drawn in ((), views)
    )
    for bad in batch.bad_samples:
        print(f"replaced by the next image: {bad}", file=sys.stderr)
    seen, rng_keys = augment.views(batch, views, seed, recipe.data)
    shares = torch.eye(images)  # [B, B]: how much of image j is in image i
    if isinstance(stage, ImageClassifierStage) and stage.mix:
        mixed, shares = mix(seen[0], shares, stage.mix, rng_keys[0])
        seen = mixed[None]
    columns = torch.cat([augment.to_unit(plain.inputs[:, 0])[None], seen])  # [1 + V, B, 3, H, W]
    pixels = (columns.permute(1, 0, 3, 4, 2) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    drawn_views = [f"view {number}" for number in range(1, len(views) + 1)] if len(views) > 1 else ["view"]
    titles = ["as evaluation crops it", *drawn_views]
    captions = _captions(index, indices, batch)
    notes = [["", *[""] * len(views)] for _ in captions]
    for row, note in enumerate(_mixing(shares, captions)):
        notes[row][-1] = note
    return sheet(pixels, titles, captions, notes)


def _captions(index: Index, indices: BatchIndices, batch: Batch) -> list[tuple[str, str]]:
    """Return class and key of each image of a batch."""
    bad = {(sample.shard, sample.key) for sample in batch.bad_samples}
    captions = []
    for sample, label in zip(indices.samples.tolist(), batch.labels.tolist(), strict=True):
        shard, position = index.locate(sample)
        key = shard.key(position)
        named = index.classes[label] if 0 <= label < len(index.classes) else str(label)
        name = "" if label == UNLABELLED else named
        captions.append((name, f"in place of {key}" if (shard.path, key) in bad else key))
    return captions


def _mixing(shares: Tensor, captions: Sequence[tuple[str, str]]) -> list[str]:
    """Return what each image was mixed with; an empty text for one that was not.

    shares: [B, B], how much of image j is in image i. captions: class and key of each image.
    """
    notes = []
    for row, share in enumerate(shares):
        other = share.clone()
        other[row] = 0
        partner = int(other.argmax())
        name, key = captions[partner]
        own, rest = round(100 * float(share[row])), round(100 * float(share[partner]))
        notes.append(f"{own} % of itself, {rest} % of {key} ({name})" if other.any() else "")
    return notes


def sheet(
    pixels: np.ndarray,
    titles: Sequence[str] = (),
    captions: Sequence[tuple[str, str]] = (),
    notes: Sequence[Sequence[str]] = (),
) -> Sheet:
    """Draw images side by side. Columns are as wide as their images and texts need.

    Args:
        pixels: [rows, columns, H, W, 3] uint8.
        titles: Text above each column.
        captions: Two texts at the left of each row.
        notes: Text below each image; may be empty.
    """
    rows, columns = pixels.shape[:2]
    font = _font()
    left = [[*_wrapped(name), *_wrapped(key)] for name, key in captions] or [[] for _ in range(rows)]
    below = [[_wrapped(note) for note in row] for row in notes] or [[[] for _ in range(columns)] for _ in range(rows)]
    above = [_wrapped(title) for title in titles] or [[] for _ in range(columns)]

    def width(texts: Sequence[Sequence[str]]) -> int:
        return max((round(font.getlength(line) + 0.5) for lines in texts for line in lines), default=0)

    widths = [width(left)] + [max(CELL, width([above[n], *(under[n] for under in below)])) for n in range(columns)]
    heights = [_LINE * max(map(len, above), default=0)]
    for caption, under in zip(left, below, strict=True):
        heights.append(max(CELL + _LINE * max(map(len, under), default=0), _LINE * len(caption)))
    lefts, tops = _edges(widths), _edges(heights)
    page = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(page)

    def write(lines: Sequence[str], x: int, y: int) -> None:
        for number, line in enumerate(lines):
            pen.text((x, y + number * _LINE), line, fill="black", font=font)

    places = [[(lefts[column + 1], tops[row + 1]) for column in range(columns)] for row in range(rows)]
    for lines, x in zip(above, lefts[1:], strict=False):
        write(lines, x, tops[0])
    for row in range(rows):
        write(left[row], lefts[0], tops[row + 1])
        for column, (x, y) in enumerate(places[row]):
            cell = Image.fromarray(pixels[row, column])
            method = Image.Resampling.LANCZOS if cell.width > CELL else Image.Resampling.NEAREST
            page.paste(cell.resize((CELL, CELL), method), (x, y))
            write(below[row][column], x, y + CELL)
    return Sheet(page, places)


def _edges(extents: Sequence[int]) -> list[int]:
    """Return where each of several boxes begins, and the end of the last; an empty box takes no gap."""
    edges, at = [], _GAP
    for extent in extents:
        edges.append(at)
        at += extent + (_GAP if extent else 0)
    return [*edges, at]


def _wrapped(text: str) -> list[str]:
    """Return a text of any origin and length as a few lines that can be drawn."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return textwrap.wrap(printable, _CHARACTERS, max_lines=_LINES, placeholder=" ...")


def _font() -> ImageFont.FreeTypeFont:
    """Return a font that knows the letters of many languages: the one that comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", _FONT_SIZE)
