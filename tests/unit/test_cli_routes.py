"""`sparse-mlp-ds routes`: data and pictures from an export, a checkpoint or a run, and what it refuses."""

import json
import re
import shutil

import pytest
from matplotlib import colormaps

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.routes import figures, record
from sparse_mlp_ds.routes.drawing import COLOURS, WEIGHTS
from tests.helpers.made_checkpoints import call, finished, recipe, save
from tests.helpers.named_shards import NAMES, shards
from tests.helpers.tiny_families import TINY
from tests.helpers.tiny_families import make as make_family
from tests.helpers.weight_files import DENSE, make

LOAD = {"moe/2.moe_s/items": [4, 6, 8], "moe/2.moe_c/items": [9, 27]}
OF_LAYER = ("classes", "items", "entropy", "images", "fields")
PICTURES = {
    *(f"{name}-2.{kind}.svg" for name in OF_LAYER for kind in ("moe_s", "moe_c")),
    *("agreement.svg", "token_mixing.svg", "token_mixing-2.moe_s.svg"),
}

WORDS = {
    "classes-2.moe_c": ["Experts by class", "32 re-represented patches", "expert", "%", *NAMES],
    "items-2.moe_s": ["Experts by channel", "6 channels of each image to 1 of 3 experts", "share of images, %"],
    "entropy-2.moe_c": ["Gate entropy", "entropy / log E", "share of items, %"],
    "load-one-2.moe_s": ["during stage one", "optimizer step", "share of choices, %", "even share is 33.3 %"],
    "agreement": ["linear CKA", "normalised mutual information", "2.moe_s", "2.moe_c"],
    "images-2.moe_s": ["send an expert most", "expert 0", " items"],
    "fields-2.moe_c": ["Receptive field", "through the re-represent layer", "over its mean"],
    "token_mixing": ["Token-mixing weights of the dense blocks", "block 0", "block 1"],
    "token_mixing-2.moe_s": ["of the experts", "expert 2"],
}
"""Picture -> texts in it."""


@pytest.fixture
def val(tmp_path):
    (tmp_path / "val").mkdir()
    return shards(tmp_path / "val", NAMES)


@pytest.fixture
def run(tmp_path):
    """A run with records of two stages."""
    folder = tmp_path / "run"
    save(folder / "checkpoints")
    records = [{"stage": stage, "step": step, **LOAD} for stage, step in (("one", 1), ("one", 2), ("two", 3))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + '{"stage": "two", "st')
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """For tests of what is counted: pictures take seconds on a busy machine."""
    monkeypatch.setattr(figures, "draw", lambda record: iter(()))


def routes(capsys, *arguments):
    return call(capsys, "routes", *arguments, "--workers=0", "--batch-size=4")


def test_a_run_with_all_pictures(tmp_path, capsys, run, val):
    """With titles, axes and units; and an export in its place, of which there is no load during training."""
    code, said, errors = routes(capsys, run, val, "--out", tmp_path / "out")
    assert (code, errors) == (0, [])
    assert said == f"10 images, 2 MoE layers: {tmp_path}/out/routes.json and 17 pictures\n"
    loads = {f"load-{stage}-2.{kind}.svg" for stage in ("one", "two") for kind in ("moe_s", "moe_c")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES | loads | {"routes.json"}
    drawn = {path.name: path.read_text() for path in tmp_path.glob("out/*.svg")}
    text = {name: " ".join(re.findall(">([^<>]+)</text>", svg)) for name, svg in drawn.items()}
    for name, words in WORDS.items():
        assert [word for word in words if word not in text[f"{name}.svg"]] == [], name
    call(capsys, "export", run, tmp_path / "export")
    code, said, errors = routes(capsys, tmp_path / "export", val, "--out", tmp_path / "out")
    assert (code, errors) == (0, []) and said.endswith("13 pictures\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == PICTURES | {"routes.json"}


def test_the_data_of_a_run(tmp_path, capsys, run, val, undrawn):
    assert routes(capsys, run, val, "--out", tmp_path / "out")[0] == 0
    found = record.read(tmp_path / "out/routes.json")
    assert (found.images, found.classes, found.side) == (10, tuple(NAMES), 4)
    moe_s, moe_c = found.layers
    assert sum(map(sum, moe_s.by_class)) == 10 * 6 and sum(map(sum, moe_c.by_class)) == 10 * 32 * 2
    assert [one.steps for one in found.load if one.layer == "2.moe_s"] == [(1, 2), (3,)]
    assert found.load[0].items == ((4, 6, 8), (4, 6, 8))
    assert {one.image for layer in found.layers for top in layer.top_images for one in top} == found.pictures.keys()


def test_an_export_tells_the_same_as_its_run(tmp_path, capsys, run, val, undrawn):
    call(capsys, "export", run, tmp_path / "export")
    for source in (run, tmp_path / "export"):
        assert routes(capsys, source, val, "--out", tmp_path / source.name / "out")[0] == 0
    before, after = (json.loads((tmp_path / name / "out/routes.json").read_text()) for name in ("run", "export"))
    assert before.pop("load") and after.pop("load") == [] and before == after
    code, said, _ = routes(capsys, run / "checkpoints/step_4", val, "--out", tmp_path / "out", "--images=4")
    assert code == 0 and said.startswith("4 images")


def test_a_model_without_a_head_and_patches_that_are_routed(tmp_path, capsys, val):
    """Of a pretrained V-MoE; the classes are those of the shards."""
    model = make_family("vmoe")
    model.reset_head(0)
    section = {"recipe": recipe() | {"model": TINY["vmoe"]}, "progress": finished("pretrain"), "param": model}
    path = save(tmp_path / "run/checkpoints", **section)
    code, _, errors = routes(capsys, path, val, "--out", tmp_path / "out")
    assert (code, errors) == (0, [])
    found = record.read(tmp_path / "out/routes.json")
    assert [layer.on_grid for layer in found.layers] == [True, True] and found.classes == tuple(NAMES)
    for layer in found.layers:
        assert len(layer.expert_of_patch) == 5, "an image of each class"
        assert all(len(experts) == 16 for experts in layer.expert_of_patch.values())
    drawn = (tmp_path / "out/patches-1.moe_c.svg").read_text()
    assert "First expert of each patch" in drawn and "elk" in drawn
    assert not (tmp_path / "out/token_mixing.svg").exists()


def refused(capsys, *arguments):
    code, said, errors = routes(capsys, *arguments)
    assert (code, said, len(errors)) == (2, "", 1)
    return errors[0]


def test_bad_input_is_one_line(tmp_path, capsys, run, val):
    out = ("--out", tmp_path / "out")
    dense = save(tmp_path / "dense", param=make(DENSE), recipe=recipe(spec=DENSE))
    assert "has no experts" in refused(capsys, dense, val, *out)
    (tmp_path / "other").mkdir()
    others = shards(tmp_path / "other", ["ant", "bee", "cat", "dog", "gnu"])
    assert "class 4 is 'gnu', but 'elk'" in refused(capsys, run, others, *out)
    assert "--images are at least 1" in refused(capsys, run, val, *out, "--images=0")
    assert "holds something else than routes" in refused(capsys, run, val, "--out", run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("records", [None, "", '{"stage": "one", "st', "[]\n"])
def test_a_run_without_records(tmp_path, capsys, run, val, records):
    (run / "metrics.jsonl").unlink()
    if records is not None:
        (run / "metrics.jsonl").write_text(records)
    assert "records of the run" in refused(capsys, run, val, "--out", tmp_path / "out")


def test_records_of_an_older_version_do_not_tell_the_load(tmp_path, capsys, run, val, undrawn):
    (run / "metrics.jsonl").write_text('{"stage": "one", "step": 1, "moe/2.moe_s/load_cv": 0.1}\n')
    code, _, (line,) = routes(capsys, run, val, "--out", tmp_path / "out")
    assert code == 0 and line.startswith("WARNING") and "load over training" in line


def test_a_damaged_record_is_refused(tmp_path, capsys, run, val, undrawn):
    routes(capsys, run, val, "--out", tmp_path / "out")
    file = tmp_path / "out/routes.json"
    shutil.copy(file, tmp_path / "whole.json")
    for damage in (file.read_text()[:-5], file.read_text().replace('"side":4', '"side":"four"'), "{}"):
        file.write_text(damage)
        with pytest.raises(UserError, match="not a record of routes"):
            record.read(file)
    assert record.read(tmp_path / "whole.json").layers[0].kind == "moe_s"


def test_colours_stay_in_order_when_printed_in_grey():
    for name in (COLOURS, WEIGHTS):
        grey = colormaps[name](range(256))[:, :3] @ [0.299, 0.587, 0.114]
        assert (grey[1:] - grey[:-1] > -0.01).all() and grey[-1] - grey[0] > 0.6
