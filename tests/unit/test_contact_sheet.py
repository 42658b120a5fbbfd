"""The contact sheet: its layout, and that its cells are the very tensors that the stages train on."""

import json
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sparse_mlp_ds.config import load_recipe
from sparse_mlp_ds.contact_sheet import CELL, draw, sheet
from sparse_mlp_ds.data import digits, loader, sources
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.train.finetune import Finetuning
from sparse_mlp_ds.train.pretrain import Pretraining

SIZE, GAP, WORLD, MICRO = 16, 4, 2, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data") / "digits"
    digits.make(made)
    return made


def recipe_of(folder, *overrides):
    return load_recipe("digits", [f"data.train={folder}/train", f"data.val={folder}/val", *overrides])


def cells(page):
    """[rows, columns, CELL, CELL, 3] of a sheet."""
    pixels = np.asarray(page)
    rows, columns = (extent // (CELL + GAP) for extent in pixels.shape[:2])
    places = [[(GAP + r * (CELL + GAP), GAP + c * (CELL + GAP)) for c in range(columns)] for r in range(rows)]
    return np.array([[pixels[y : y + CELL, x : x + CELL] for y, x in row] for row in places])


def images_of(page):
    """[rows, columns, 3, SIZE, SIZE] of a sheet of 16 x 16 pixels, each of which is drawn 10 x 10 large."""
    drawn = cells(page)[:, :, 5 :: CELL // SIZE, 5 :: CELL // SIZE]
    return torch.from_numpy(drawn).permute(0, 1, 4, 2, 3).double()


class StopHereError(Exception):
    """Ends a stage's loss where its network would be called."""


def seen_by_stage(recipe, name, step, count):
    """The images [count, V, 3, H, W], as bytes, that the networks of all ranks get from a step's first samples."""
    stage = recipe.stages[name]
    views = (stage.view,) if stage.kind == "finetune" else stage.views
    indexes = sources.open_sources(recipe.data, recipe.data.train)
    order = sources.training_order(recipe.data, indexes, stage.batch_size, recipe.train.seed)
    dataset = loader.ShardDataset(
        join(indexes), SIZE, 10, views, recipe.train.seed, order, cache=sources.cache(recipe.data)
    )
    method = SimpleNamespace(job=SimpleNamespace(recipe=recipe), stage=stage, views=views, averaged=None)
    by_rank = []
    for rank in range(WORLD):
        got = []

        def network(images, keys, got=got):
            got.append(images.view(-1, MICRO, *images.shape[1:]).transpose(0, 1))
            raise StopHereError

        share, turns = range(rank * MICRO, (rank + 1) * MICRO), stage.batch_size // WORLD // MICRO
        for slots in islice(micro_batches(order, range(step, step + 1), share, turns), count // WORLD // MICRO):
            with pytest.raises(StopHereError):
                if stage.kind == "pretrain":
                    network(*Pretraining._images(method, dataset[slots]))
                Finetuning._loss(method, network, dataset[slots])
        by_rank.append(got)
    everything = torch.cat([images for turn in zip(*by_rank, strict=True) for images in turn])  # the global batch
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    return (everything * std + mean).double() * 255


# layout


def test_small_images_are_enlarged_without_smoothing_in_rows_and_columns():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    page = sheet(pixels)
    assert page.mode == "RGB" and page.size == (3 * (CELL + GAP) + GAP, 2 * (CELL + GAP) + GAP)
    assert np.array_equal(cells(page), pixels.repeat(CELL // 8, axis=2).repeat(CELL // 8, axis=3))


def test_the_gaps_between_images_are_white():
    page = np.array(sheet(np.zeros((2, 3, 8, 8, 3), np.uint8)))
    for row in range(2):
        for column in range(3):
            y, x = GAP + row * (CELL + GAP), GAP + column * (CELL + GAP)
            assert (page[y : y + CELL, x : x + CELL] == 0).all()
            page[y : y + CELL, x : x + CELL] = 255
    assert (page == 255).all()


@pytest.mark.parametrize("side", [CELL, 2 * CELL + 1])
def test_larger_images_are_made_smaller(side):
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    drawn = cells(sheet(np.broadcast_to(ramp[:, None], (1, 1, side, side, 3))))[0, 0].astype(int)
    wanted = np.broadcast_to(np.linspace(0, 255, CELL)[:, None], (CELL, CELL, 3))
    # Cutting the ramp down to levels and rounding again lose 1.5 together; from a pixel to the next it rises by 1.6.
    assert drawn.shape == wanted.shape and np.abs(drawn - wanted).max() < 2


# what is drawn


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_pretraining_stages_cells_are_what_its_networks_get(folder, epoch):
    recipe = recipe_of(folder, "train.seed=5")
    stage = recipe.stages["pretrain"]
    shown = images_of(draw(recipe, stage, 8, epoch))
    assert shown.shape == (8, 3, 3, SIZE, SIZE)  # as it is, and two views
    step = epoch * (1437 // stage.batch_size)
    assert (shown[:, 1:] - seen_by_stage(recipe, "pretrain", step, 8)).abs().max() < 0.51  # of rounding to levels


FINETUNE = {
    "plain": [],
    "augmented": ["stages.finetune.view={crop_scale: [0.3, 1], flip: 0.5, rand_augment: {}, erase: 0.5}"],
    "mixed": ["stages.finetune.mix={mixup: 0.8, cutmix: 1.0}", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"],
}


@pytest.mark.parametrize("overrides", FINETUNE.values(), ids=FINETUNE)
def test_a_finetuning_stages_cells_are_what_its_network_gets(folder, overrides):
    recipe = recipe_of(folder, *overrides)
    shown = images_of(draw(recipe, recipe.stages["finetune"], 16, 1))
    assert shown.shape == (16, 2, 3, SIZE, SIZE)
    step = 1437 // recipe.stages["finetune"].batch_size
    assert (shown[:, 1:] - seen_by_stage(recipe, "finetune", step, 16)).abs().max() < 0.51


@pytest.mark.parametrize("fraction, box", [(1.0, (0, 0, 8, 8)), (0.5, (2, 2, 6, 6))])
def test_the_first_column_is_the_image_as_evaluation_sees_it(folder, fraction, box):
    recipe = recipe_of(folder, f"data.crop_fraction={fraction}")
    stage = recipe.stages["finetune"]
    shown = images_of(draw(recipe, stage, 12, 0))
    index = join(sources.open_sources(recipe.data, recipe.data.train))
    order = sources.training_order(recipe.data, [index], stage.batch_size, recipe.train.seed)
    originals = load_digits().images
    for row, sample in enumerate(order.slots(0, 0, 12).samples.tolist()):
        shard, place = index.locate(sample)
        pixels = (originals[int(shard.key(place))] * (255 / 16)).round().astype(np.uint8)
        wanted = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        assert np.array_equal(shown[row, 0].numpy(), np.broadcast_to(wanted, (3, SIZE, SIZE)))


def test_epochs_and_seeds_change_the_sheet_and_nothing_else_does(folder):
    recipe = recipe_of(folder)
    stage = recipe.stages["pretrain"]
    first = draw(recipe, stage, 4, 0)
    torch.manual_seed(1)
    assert draw(recipe, stage, 4, 0).tobytes() == first.tobytes()
    assert draw(recipe, stage, 8, 0).crop((0, 0, *first.size)).tobytes() == first.tobytes()
    assert draw(recipe, stage, 4, 1).tobytes() != first.tobytes()
    assert draw(recipe_of(folder, "train.seed=1"), stage, 4, 0).tobytes() != first.tobytes()


def test_a_bad_samples_whole_row_shows_its_stand_in(folder, tmp_path):
    copy = tmp_path / "digits"
    shutil.copytree(folder, copy)
    recipe = recipe_of(copy, "stages.finetune.view={crop_scale: [1, 1], crop_ratio: [1, 1], flip: 0}")
    stage = recipe.stages["finetune"]
    before = images_of(draw(recipe, stage, 4, 0))
    index = join(sources.open_sources(recipe.data, recipe.data.train))
    order = sources.training_order(recipe.data, [index], stage.batch_size, recipe.train.seed)
    shard, place = index.locate(int(order.slots(0, 0, 4).samples[1]))
    with open(shard.path, "r+b") as tar:
        tar.seek(int(shard.offsets[place]))
        tar.write(bytes(int(shard.sizes[place])))
    after = images_of(draw(recipe, stage, 4, 0))
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(after[1], before[1]) and torch.equal(after[1, 0], after[1, 1])
    assert torch.equal(after[1], before[2])  # the next of the order


def test_remote_tars_are_drawn_like_local_ones(folder, tmp_path):
    where = {
        "path": f"pipe:cat {folder}/train/digits-00000{{0..7}}.tar",
        "index": f"{folder}/train/index.json",
    }
    cache = {"folder": str(tmp_path / "cache"), "gigabytes": 0.01}
    remote = recipe_of(
        folder, f"data.train={json.dumps(where)}", f"data.cache={json.dumps(cache)}", "data.allow_commands=true"
    )
    local = recipe_of(folder)
    sheets = [draw(recipe, recipe.stages["pretrain"], 2, 0).tobytes() for recipe in (local, remote)]
    assert sheets[0] == sheets[1]
    assert list((tmp_path / "cache").glob("*.tar"))


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "probe"])
def test_every_kind_of_training_stage_is_drawn(tmp_path, kind):
    digits.make(tmp_path / "digits")
    sets = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    probe = "stages.probe={kind: probe, epochs: 1, batch_size: 8, optimizer: {base_lr: 1.0}}"
    recipe = load_recipe("digits", [*sets, probe])
    assert draw(recipe, recipe.stages[kind], 4, 0).height > 4 * CELL
