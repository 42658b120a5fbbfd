"""Data that a model or a stage does not take is refused in one line, before anything starts."""

import json

import pytest

from sparse_mlp_ds.data import questions
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.train import job
from sparse_mlp_ds.train.plan import plan
from tests.helpers import text_rows

SIZES = {"length": 16, "vocabulary": 40, "width": 16, "depth": 2, "hidden": 24}
MLM = {"kind": "mlm", "steps": 5, "batch_size": 8, "optimizer": {"base_lr": 0.1}}


def _resolve(folder, model=None, stages=None, train="train", val="val", **data):
    recipe = {
        "name": "test",
        "data": {"train": str(folder / train), "val": str(folder / val), "workers": 0} | data,
        "model": {"name": "gmlp_text_speeches"} | (SIZES if model is None else model),
        "stages": stages or {"mlm": MLM},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "ds.json").write_text('{"gradient_clipping": 1.0}')
    return job.resolve(str(folder / "recipe.yaml"), str(folder / "ds.json"), [], str(folder / "run"), "never", world=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    text_rows.write(folder / "train", text_rows.rows(40))
    text_rows.write(folder / "val", text_rows.rows(10, seed=1))
    other = TextFormat(16, 40, "1" * 64, text_rows.SPECIAL, "documents")
    text_rows.write(folder / "other", text_rows.rows(10), text=other)
    text_rows.write(folder / "spans", text_rows.rows(10), text=text_rows.text_format("spans"))
    return folder


def test_the_plan_speaks_of_sequences(folder):
    lines = plan(_resolve(folder)).splitlines()
    assert "sequences 40 of 16 tokens for training, 10 held out, labels are not read" in lines
    assert any(line.startswith("stage mlm: 5 steps of 8 sequences = 4 x 1 accumulated x 2 ranks") for line in lines)


def test_a_warm_up_longer_than_its_stage_is_told(folder):
    stage = MLM | {"optimizer": {"base_lr": 0.1, "warmup_steps": 9}}
    assert "stage mlm: a warm-up of 9 steps exceeds its 5 steps" in plan(_resolve(folder, stages={"mlm": stage}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": SIZES | {"length": 32}}, "has length 16, the model 32; set model.length: 16"),
        ({"model": SIZES | {"vocabulary": 50}}, "has vocabulary 40, the model 50; set model.vocabulary: 40"),
        ({"val": "other"}, "was made with a different tokenizer"),
        ({"stages": {"mlm": MLM | {"batch_size": 42}}}, "exceeds the 40 sequences of data.train"),
        (
            {"stages": {"a": MLM | {"kind": "finetune_span", "from_scratch": True}}},
            "stages.a: finetune_span needs questions",
        ),
        (
            {
                "stages": {"a": MLM | {"kind": "finetune_text", "from_scratch": True}},
                "train": "spans",
                "val": "spans",
                "classes": 2,
            },
            "stages.a: finetune_text needs sequences with a class each",
        ),
        (
            {
                "stages": {"a": MLM | {"kind": "finetune_span", "from_scratch": True}},
                "train": "spans",
                "val": "spans",
            },
            questions.QUESTIONS,
        ),
    ],
)
def test_what_the_model_or_a_stage_does_not_take(folder, options, message):
    with pytest.raises(UserError) as error:
        _resolve(folder, **options)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_images_and_text_are_told_apart(folder, tmp_path):
    from sparse_mlp_ds.shards import digits

    digits.make(tmp_path / "digits")
    (tmp_path / "text").mkdir()
    with pytest.raises(UserError, match="digits/train holds images, and model gmlp_text_speeches takes text"):
        _resolve(tmp_path, train="digits/train", val="digits/val")
    recipe = {"kind": "supervised", "epochs": 1, "batch_size": 8, "optimizer": {"base_lr": 0.1}, "view": {}}
    with pytest.raises(UserError, match="train holds text, and model mixer_digits takes images"):
        _resolve(folder, model={"name": "mixer_digits"}, stages={"a": recipe}, classes=2)
