"""The contact sheet: its layout, and that its cells are the very tensors that the stages train on."""

import json
import re
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sparse_mlp_ds.cli import contact_sheet
from sparse_mlp_ds.cli.contact_sheet import CELL, draw, sheet
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data import few_labels, loader, sources
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train.moco import MoCo
from sparse_mlp_ds.train.supervised import SupervisedTraining

SIZE, GAP, WORLD, MICRO = 16, 6, 2, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data") / "digits"
    digits.make(made)
    return made


def recipe_of(folder, *overrides):
    return load_recipe("digits", [f"data.train={folder}/train", f"data.val={folder}/val", *overrides])


def cells(drawn):
    """[rows, columns, CELL, CELL, 3] of a sheet."""
    pixels = np.asarray(drawn.page)
    return np.array([[pixels[y : y + CELL, x : x + CELL] for x, y in row] for row in drawn.places])


def images_of(drawn):
    """[rows, columns, 3, SIZE, SIZE] of a sheet of 16 x 16 pixels, each of which is drawn 10 x 10 large."""
    images = cells(drawn)[:, :, 5 :: CELL // SIZE, 5 :: CELL // SIZE]
    return torch.from_numpy(images).permute(0, 1, 4, 2, 3).double()


class StopHereError(Exception):
    """Ends a stage's loss where its network would be called."""


def seen_by_stage(recipe, name, epoch, count):
    """The images [count, V, 3, H, W], as bytes, that the networks of all ranks get from an epoch's first samples."""
    stage = recipe.stages[name]
    views = (stage.view,) if stage.kind == "finetune" else stage.views
    indexes = few_labels.part(sources.open_sources(recipe.data, recipe.data.train), stage, recipe.train.seed)
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
        step = epoch * order.steps_per_epoch
        for slots in islice(micro_batches(order, range(step, step + 1), share, turns), count // WORLD // MICRO):
            with pytest.raises(StopHereError):
                if stage.kind == "pretrain":
                    network(*MoCo._images(method, dataset[slots]))
                SupervisedTraining._loss(method, network, dataset[slots])
        by_rank.append(got)
    everything = torch.cat([images for turn in zip(*by_rank, strict=True) for images in turn])  # the global batch
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    return (everything * std + mean).double() * 255


# layout


def test_small_images_are_enlarged_without_smoothing_in_rows_and_columns():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    drawn = sheet(pixels)
    assert drawn.page.mode == "RGB" and drawn.page.size == (3 * (CELL + GAP) + GAP, 2 * (CELL + GAP) + GAP)
    assert np.array_equal(cells(drawn), pixels.repeat(CELL // 8, axis=2).repeat(CELL // 8, axis=3))


def _without_images(drawn):
    """The sheet's pixels, with white in place of its images."""
    page = np.array(drawn.page)
    for x, y in (place for row in drawn.places for place in row):
        assert (page[y : y + CELL, x : x + CELL] == 0).all(), "nothing is written over an image"
        page[y : y + CELL, x : x + CELL] = 255
    return page


BLACK = np.zeros((2, 3, 8, 8, 3), np.uint8)
LONG = "a class name that is longer than a line of a caption, and another one, and another one of the same kind"


def test_the_gaps_between_images_are_white():
    assert (_without_images(sheet(BLACK)) == 255).all()


def test_texts_stand_beside_the_images_and_end_before_the_edge():
    texts = [("n01", "tench"), (LONG, "key/" + "9" * 200)]
    drawn = sheet(BLACK, ["one", "two", LONG], texts, [["", "", "70 %, and 30 % of W" + "W" * 40]] * 2)
    page = _without_images(drawn)
    assert (page[:, -3:] == 255).all() and (page[-3:] == 255).all(), "nothing is cut off"
    for (left, top), column in zip(drawn.places[1], range(3), strict=True):
        assert (page[: drawn.places[0][0][1], left : left + CELL] < 255).any(), "a title"
        assert (page[top + CELL :, left : left + CELL] < 255).any() == (column == 2), "a note below the last"
    assert all((page[y : y + CELL, : drawn.places[0][0][0]] < 255).any() for y in (row[0][1] for row in drawn.places))
    assert drawn.places[0][1][0] - drawn.places[0][0][0] == CELL + GAP, "no wider than its image and title"


def test_texts_of_any_origin_can_be_drawn():
    sheet(BLACK[:1], ["a", "b", "c"], [("Æble \x1b[31m 猫 \u202e", "")], [["", "", "\0"]])


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
    assert (shown[:, 1:] - seen_by_stage(recipe, "pretrain", epoch, 8)).abs().max() < 0.51  # of rounding to levels


FINETUNE = {
    "plain": [],
    "few labels": ["stages.finetune.label_fraction=0.1"],
    "augmented": ["stages.finetune.view={crop_scale: [0.3, 1], flip: 0.5, rand_augment: {}, erase: 0.5}"],
    "mixed": ["stages.finetune.mix={mixup: 0.8, cutmix: 1.0}", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"],
}


@pytest.mark.parametrize("overrides", FINETUNE.values(), ids=FINETUNE)
def test_a_finetuning_stages_cells_are_what_its_network_gets(folder, overrides):
    recipe = recipe_of(folder, *overrides)
    shown = images_of(draw(recipe, recipe.stages["finetune"], 16, 1))
    assert shown.shape == (16, 2, 3, SIZE, SIZE)
    assert (shown[:, 1:] - seen_by_stage(recipe, "finetune", 1, 16)).abs().max() < 0.51


@pytest.mark.parametrize("fraction, box", [(1.0, (0, 0, 8, 8)), (0.5, (2, 2, 6, 6))])
def test_the_first_column_is_the_image_as_evaluation_sees_it(folder, fraction, box):
    recipe = recipe_of(folder, f"data.crop_fraction={fraction}")
    stage = recipe.stages["finetune"]
    shown = images_of(draw(recipe, stage, 12, 0))
    index = join(sources.open_sources(recipe.data, recipe.data.train))
    order = sources.training_order(recipe.data, [index], stage.batch_size, recipe.train.seed)
    originals = load_digits().images
    for row, sample in enumerate(order.batch_indices(0, 0, 12).samples.tolist()):
        shard, place = index.locate(sample)
        pixels = (originals[int(shard.key(place))] * (255 / 16)).round().astype(np.uint8)
        wanted = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        assert np.array_equal(shown[row, 0].numpy(), np.broadcast_to(wanted, (3, SIZE, SIZE)))


def test_epochs_and_seeds_change_the_sheet_and_nothing_else_does(folder):
    recipe = recipe_of(folder)
    stage = recipe.stages["pretrain"]
    first = draw(recipe, stage, 4, 0)
    torch.manual_seed(1)
    assert draw(recipe, stage, 4, 0).page.tobytes() == first.page.tobytes()
    assert np.array_equal(cells(draw(recipe, stage, 8, 0))[:4], cells(first))
    assert not np.array_equal(cells(draw(recipe, stage, 4, 1)), cells(first))
    assert not np.array_equal(cells(draw(recipe_of(folder, "train.seed=1"), stage, 4, 0)), cells(first))


def test_captions_name_class_key_and_what_an_image_was_mixed_with(folder, monkeypatch):
    texts = {}
    monkeypatch.setattr(contact_sheet, "sheet", lambda pixels, *given: texts.update(zip(NAMES, given, strict=True)))
    recipe = recipe_of(folder, *FINETUNE["mixed"])
    draw(recipe, recipe.stages["finetune"], 6, 0)
    index = join(sources.open_sources(recipe.data, recipe.data.train))
    order = sources.training_order(recipe.data, [index], 64, recipe.train.seed)
    located = [index.locate(sample) for sample in order.batch_indices(0, 0, 6).samples.tolist()]
    expected = [(index.classes[shard.labels[place]], shard.key(place)) for shard, place in located]
    assert texts["captions"] == expected and texts["titles"] == ["as evaluation crops it", "view"]
    for row, (_, note) in enumerate(texts["notes"]):
        name, key = expected[row ^ 1]  # its neighbour
        kept, rest = re.fullmatch(rf"(\d+) % of itself, (\d+) % of {key} \({name}\)", note).groups()
        assert 99 <= int(kept) + int(rest) <= 101
    draw(recipe_of(folder), recipe_of(folder).stages["pretrain"], 4, 0)
    assert texts["titles"] == ["as evaluation crops it", "view 1", "view 2"] and not any(map(any, texts["notes"]))


NAMES = ("titles", "captions", "notes")


def test_a_bad_samples_whole_row_shows_its_stand_in_and_says_so(folder, tmp_path, capsys):
    copy = tmp_path / "digits"
    shutil.copytree(folder, copy)
    recipe = recipe_of(copy, "stages.finetune.view={crop_scale: [1, 1], crop_ratio: [1, 1], flip: 0}")
    stage = recipe.stages["finetune"]
    before = images_of(draw(recipe, stage, 4, 0))
    index = join(sources.open_sources(recipe.data, recipe.data.train))
    order = sources.training_order(recipe.data, [index], stage.batch_size, recipe.train.seed)
    shard, place = index.locate(int(order.batch_indices(0, 0, 4).samples[1]))
    with open(shard.path, "r+b") as tar:
        tar.seek(int(shard.offsets[place]))
        tar.write(bytes(int(shard.sizes[place])))
    assert "replaced" not in capsys.readouterr().err
    after = images_of(draw(recipe, stage, 4, 0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"replaced by the next image: {shard.path}: sample '{shard.key(place)}': cannot be decoded")
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
    sheets = [draw(recipe, recipe.stages["pretrain"], 2, 0).page.tobytes() for recipe in (local, remote)]
    assert sheets[0] == sheets[1]
    assert list((tmp_path / "cache").glob("*.tar"))


@pytest.mark.parametrize("kind", ["pretrain", "finetune", "probe"])
def test_every_kind_of_training_stage_is_drawn(tmp_path, kind):
    digits.make(tmp_path / "digits")
    sets = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]
    probe = "stages.probe={kind: probe, epochs: 1, batch_size: 8, optimizer: {base_lr: 1.0}}"
    recipe = load_recipe("digits", [*sets, probe])
    assert draw(recipe, recipe.stages[kind], 4, 0).page.height > 4 * CELL
