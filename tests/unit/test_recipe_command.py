"""`sparse-mlp-ds recipe`: what it prints can be used again, and what it writes trains on the images it was given."""

import io
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import yaml
from PIL import Image

from sparse_mlp_ds.cli.main import main
from sparse_mlp_ds.config import deepspeed_json, json_schema, loading
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import statistics
from sparse_mlp_ds.shards.scan import make_index
from sparse_mlp_ds.train import memory
from tests.helpers.tars import write_tar


def printed(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize("name", loading.RECIPES.names())
def test_what_show_prints_is_the_same_recipe(name, capsys, tmp_path):
    (tmp_path / "shown.yaml").write_text(printed(capsys, "recipe", "show", name), encoding="utf-8")
    assert loading.load_recipe(str(tmp_path / "shown.yaml")) == loading.load_recipe(name)


def test_list_names_every_recipe(capsys):
    lines = printed(capsys, "recipe", "list").splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == loading.RECIPES.names()
    assert all(len(line) > 20 for line in lines[1::2])


def test_diff_names_keys_in_lists_and_missing_stages(capsys):
    lines = printed(capsys, "recipe", "diff", "sparse_b_moco_adamw", "sparse_b_moco_lamb").splitlines()
    assert 'stages.pretrain.optimizer.name: "adamw" -> "lamb"' in lines
    assert "stages.probe: only in sparse_b_moco_adamw" in lines
    assert any(line.startswith("stages.pretrain.views.0.rand_augment") for line in lines)
    assert printed(capsys, "recipe", "diff", "digits", "digits") == "no difference\n"


def test_the_schemas_accept_what_is_shipped_and_nothing_misspelt(capsys):
    recipes = jsonschema.Draft202012Validator(json.loads(printed(capsys, "recipe", "schema")))
    for name in loading.RECIPES.names():
        tree = yaml.safe_load(loading.RECIPES.path(name, "NAME").read_text(encoding="utf-8"))
        recipes.validate(tree)
    assert not recipes.is_valid({"stages": {"finetune": {"epoch": 3}}})
    assert not recipes.is_valid({"data": {"train": 3}})
    assert recipes.is_valid({"base": "digits", "stages": {"pretrain": None, "finetune": {"epochs": 3}}})
    deepspeed = jsonschema.Draft202012Validator(json.loads(printed(capsys, "recipe", "schema", "--ds_config")))
    for name in deepspeed_json.DS_CONFIGS.names():
        deepspeed.validate(json.loads(deepspeed_json.DS_CONFIGS.path(name, "NAME").read_text(encoding="utf-8")))
    assert not deepspeed.is_valid({"gradient_clipping": 1.0, "zero_optimization": {"stge": 2}})
    assert not deepspeed.is_valid({"gradient_cliping": 1.0})


def test_the_schemas_are_valid_schemas():
    for schema in (json_schema.of_recipes(), json_schema.of_deepspeed_json()):
        jsonschema.Draft202012Validator.check_schema(schema)


def coloured(colour):
    content = io.BytesIO()
    Image.new("RGB", (24, 24), colour).save(content, "png")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two classes of 24 x 24 images of one colour each, one image of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    for split, images in (("train", 40), ("val", 8)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        members = []
        for n in range(images):
            colour = (200, 100, 0) if n % 2 else (100, 100, 50)
            content = coloured(colour) if n != 7 else b"not an image"
            members += [(f"{n:03d}.png", content), (f"{n:03d}.cls", str(n % 2).encode())]
        write_tar(tmp_path / "photos" / split / "some-000000.tar", *members)
        make_index(tmp_path / "photos" / split, ["ant", "bee"])
    return tmp_path / "photos"


def test_statistics_are_those_of_the_pixels(photos):
    measured = statistics.measure(index_file.load(photos / "train"), 1000, 24)
    pixels = np.array([(200, 100, 0) if n % 2 else (100, 100, 50) for n in range(40) if n != 7]) / 255
    assert measured.images == 39
    assert measured.mean == pytest.approx(pixels.mean(axis=0))
    assert measured.std == pytest.approx(pixels.std(axis=0), abs=1e-6)


@pytest.mark.parametrize("flags", [(), ("--pretrain",)], ids=str)
def test_new_writes_a_recipe_that_passes_every_check(photos, flags, capsys, tmp_path):
    said = printed(capsys, "recipe", "new", "photos", "--model", "sparse_mlp_digits", *flags)
    recipe = loading.load_recipe("photos.yaml")
    assert list(recipe.stages)[-1] == "evaluate" and (len(recipe.stages) == 3) == bool(flags)
    assert recipe.data.classes == 2 and recipe.data.mean[0] > recipe.data.mean[2]
    assert min(recipe.data.std) > 0
    assert "wrote photos.yaml" in said
    first = next(iter(recipe.stages.values()))
    assert first.batch_size * 2 <= 40, "an epoch has more than one step"


def test_new_halves_the_batch_until_it_fits(photos, monkeypatch, capsys):
    monkeypatch.setattr("sparse_mlp_ds.train.new_recipe.STEPS_PER_EPOCH", 1)

    def batch_with(size):
        monkeypatch.setattr("sparse_mlp_ds.distributed.process_group.device_memory", lambda: size)
        printed(capsys, "recipe", "new", "photos", "--model", "sparse_mlp_digits", "--out", f"of {size}.yaml")
        return loading.load_recipe(f"of {size}.yaml").stages["supervised"].batch_size

    assert memory.SPARE < 0.5
    assert 8 <= batch_with(24 << 20) < batch_with(2 << 30) == 32


def test_bad_input_is_one_line(photos, capsys):
    new = ("recipe", "new", "photos", "--model")
    assert "did you mean 'mixer_b16'" in refused(capsys, *new, "mixer_b17")
    assert "elsewhere/train is not there" in refused(capsys, "recipe", "new", "elsewhere", "--model", "mixer_b16")
    assert "ends in .yaml" in refused(capsys, *new, "mixer_b16", "--out", "recipe.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparse_mlp_ds.distributed.process_group.device_memory", lambda: 1 << 20)
        assert "does not fit into 0.0 GiB" in refused(capsys, *new, "sparse_mlp_digits")
    (photos.parent / "photos.yaml").touch()
    assert "photos.yaml exists" in refused(capsys, *new, "mixer_b16")
    assert "did you mean 'digits'" in refused(capsys, "recipe", "show", "digit")
    assert "no such recipe" in refused(capsys, "recipe", "diff", "digits", "nothing")


def test_a_reader_that_has_read_enough_is_no_error():
    shell = f"{sys.executable} -m sparse_mlp_ds.cli.main recipe list | head -n 1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"{loading.RECIPES.names()[0]}: ") and "roken" not in done.stderr
