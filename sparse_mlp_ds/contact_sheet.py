"""A contact sheet of what the network will see: the very crops and colours of an epoch's first samples."""

import numpy as np
import torch
from PIL import Image

from sparse_mlp_ds.data import augment, sources
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.loader import ShardDataset, load
from sparse_mlp_ds.data.mixing import mix
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.recipe import Recipe
from sparse_mlp_ds.stages import Supervised, TrainingStage

CELL = 160
"""Side of one picture, pixels; smaller images are drawn larger, without smoothing."""
_GAP = 4


def draw(recipe: Recipe, stage: TrainingStage, images: int, epoch: int) -> Image.Image:
    """Return a sheet with a row per image: as evaluation sees it, then every view of the stage."""
    indexes = sources.open_sources(recipe.data, recipe.data.train)
    size, seed = recipe.spec.image_size, recipe.train.seed
    order = sources.training_order(recipe.data, indexes, stage.batch_size, seed)
    if not order.steps_per_epoch:
        raise UserError(f"batch_size {order.batch_size} exceeds the {order.samples} images of data.train; lower it")
    views = stage.views
    slots = order.slots(epoch * order.steps_per_epoch, 0, images)
    index, cache, fraction = join(indexes), sources.cache(recipe.data), recipe.data.crop_fraction
    plain, batch = (
        # The order also for the plain ones, so that a bad sample's stand-in is the same in its whole row.
        next(load(ShardDataset(index, size, recipe.data.classes, wanted, seed, order, fraction, cache), [slots], 0))
        for wanted in ((), views)
    )
    seen, keys = augment.views(batch, views, seed)
    if isinstance(stage, Supervised) and stage.mix:
        targets = torch.zeros(images, recipe.data.classes)
        seen = mix(seen[0], targets, stage.mix, keys[0])[0][None]
    columns = torch.cat([augment.to_unit(plain.images[:, 0])[None], seen])  # [1 + V, B, 3, H, W]
    return sheet((columns.permute(1, 0, 3, 4, 2) * 255).round().to(torch.uint8).numpy())


def sheet(pixels: np.ndarray) -> Image.Image:
    """Return images [rows, columns, H, W, 3] uint8 side by side."""
    rows, columns = pixels.shape[:2]
    page = Image.new("RGB", (columns * (CELL + _GAP) + _GAP, rows * (CELL + _GAP) + _GAP), "white")
    for row in range(rows):
        for column in range(columns):
            cell = Image.fromarray(pixels[row, column])
            how = Image.Resampling.LANCZOS if cell.width > CELL else Image.Resampling.NEAREST
            cell = cell.resize((CELL, CELL), how)
            page.paste(cell, (_GAP + column * (CELL + _GAP), _GAP + row * (CELL + _GAP)))
    return page
