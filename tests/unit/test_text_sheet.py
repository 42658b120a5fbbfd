"""`sparse-mlp-ds shards show` of text: the rows of an epoch, with the very masks of training."""

import re

import pytest
import torch

from sparse_mlp_ds.cli import text_sheet
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data import sources
from sparse_mlp_ds.data.loader import ShardDataset, load
from sparse_mlp_ds.data.masking import mask
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.train.text_classification import text_keys
from tests.helpers import text_sets
from tests.helpers.tars import refusal

LENGTH = 48


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Overrides by which the recipe `speeches` takes a small data set with a <b> in it."""
    folder = tmp_path_factory.mktemp("text") / "made"
    given = [one.__class__(f"<b>{one.text}\nend", label=one.label) for one in text_sets.texts(20, classes=2, words=6)]
    text_sets.make(folder, given[:12], given[12:], length=LENGTH)
    return (
        f"data.train={folder}/train", f"data.val={folder}/val", "data.embedded=null", "data.classes=2",
        f"model.length={LENGTH}", "model.vocabulary=340", "stages.mlm.batch_size=4",
        "stages.finetune.batch_size=4",
    )  # fmt: skip


def test_masked_places_are_those_of_training(settings):
    recipe = load_recipe("speeches", settings)
    stage = recipe.stages["mlm"]
    rows = text_sheet.rows(recipe, stage, 4, epoch=1)
    (index,) = sources.open_sources(recipe.data, recipe.data.train)
    tokenizer = Tokenizer(text_sheet.Path(index.source) / "tokenizer.model")
    order = sources.training_order(recipe.data, [index], 4, recipe.train.seed)
    indices = order.batch_indices(order.steps_per_epoch, 0, 4)
    (batch,) = load(ShardDataset(index, None, None, order=order), [indices], 0)
    masked = mask(batch.inputs, text_keys(batch, recipe.train.seed), index.text)
    for row, tokens, inputs in zip(rows, batch.inputs, masked.inputs, strict=True):
        restored = [(piece.text, piece.shown) for piece in row.pieces if piece.shown is not None]
        changed = torch.nonzero(tokens != inputs).flatten().tolist()
        name = lambda token: tokenizer.piece(token).replace("\u2581", " ").replace("\n", "\\n")  # noqa: E731
        expected = [(name(int(tokens[place])), name(int(inputs[place]))) for place in changed]
        assert [pair for pair in restored if pair[0] != pair[1]] == expected and expected
        whole = "".join(piece.text for piece in row.pieces).replace("\\n", "\n")
        assert whole == f"[CLS]{tokenizer.decode(tokens.tolist())}[SEP]"


def test_rows_are_printed_or_written(shards, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [part for one in settings for part in ("--set", one)]
    code, said, complaints = shards("show", "speeches", *flags, "--images", 3)
    assert (code, complaints) == (0, [])
    titles = [line for line in said if re.fullmatch(r"row [123] · class [01] · \d{10}:\d+", line)]
    assert len(titles) == 3
    assert shards("show", "speeches", *flags, "--images", 3, "--out", "a.txt")[0] == 0
    assert (tmp_path / "a.txt").read_text().splitlines() == said
    assert shards("show", "speeches", *flags, "--images", 3, "--out", "a.html")[0] == 0
    page = (tmp_path / "a.html").read_text()
    assert page.count("<h2>") == 3 and "<mark>" in page and "&lt;" in page and "<b>" not in page
    assert shards("show", "speeches", *flags, "--stage", "finetune")[1][1].startswith("[CLS]<b>"), "nothing is masked"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--out", "a.png"], "--out a.png: text goes into a .txt or .html file"),
        (["--stage", "finetun"], "did you mean 'finetune'?"),
        (["--images", 0], "--images is even and at least 2"),
        (["--set", "stages.mlm.batch_size=100"], "batch_size 100 exceeds the 12 rows of data.train; lower it"),
    ],
)
def test_bad_flags_are_one_line(shards, settings, tmp_path, monkeypatch, flags, part):
    monkeypatch.chdir(tmp_path)
    code, _, (line,) = shards("show", "speeches", *[part for one in settings for part in ("--set", one)], *flags)
    assert code == 2 and part in line and not list(tmp_path.iterdir())


def test_a_missing_tokenizer_and_images_are_told(settings, tmp_path):
    recipe = load_recipe("speeches", settings)
    tokenizer = text_sheet.Path(recipe.data.train[0].path) / "tokenizer.model"
    content = tokenizer.read_bytes()
    tokenizer.unlink()
    try:
        assert "tokenizer.model: No such file" in refusal(text_sheet.rows, recipe, recipe.stages["mlm"], 2, 0)
    finally:
        tokenizer.write_bytes(content)
