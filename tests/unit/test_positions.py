"""Positions of transformers: what versions wrote means today, and whose published weights are read how."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.config import history as recipes
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models import history, registry
from sparse_mlp_ds.models.positions import sin_cos
from sparse_mlp_ds.train.param_groups import layer_decay, parameter_groups
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.made_checkpoints import call, edit, recipe, save
from tests.helpers.references import load, under
from tests.helpers.tiny_families import TINY
from tests.helpers.weight_files import logits, make, refused, weights

TRANSFORMERS = ("vit", "vmoe", "widenet")
TIMM = {"name": "vit_s16", "image_size": 16, "patch_size": 4, "width": 24, "depth": 2, "heads": 2, "channel_hidden": 48}
MOCO = TIMM | {"width": 16, "channel_hidden": 64}


def spec_of(family="vit", **fields):
    return model_spec(TINY[family] | fields)


# ---- what was written before there was a choice


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_checkpoint_and_an_export_of_version_0_1_0_keep_their_positions(tmp_path, capsys, family):
    old = spec_of(family, positions="sin_cos_swapped")
    model = make(old)
    path = save(tmp_path, param=model, recipe=recipe(old))
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["spec"].pop("positions") == "sin_cos_swapped"  # which version 0.1.0 did not write
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    edit(path, lambda manifest: manifest["recipe"]["model"].pop("positions"))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for source in (path, tmp_path / "out"):
        read = SparseVisionModel.from_pretrained(source)
        assert torch.equal(read(images), logits(model))
    assert not torch.equal(logits(make(spec_of(family))), logits(model))


def test_recipes_write_the_positions_out_so_that_older_ones_are_known():
    now = loading.load_recipe("vit_b_moco_adamw").model_dump(mode="json")
    assert now["model"]["positions"] == "sin_cos"
    old = json.loads(json.dumps(now))
    del old["model"]["positions"]
    assert recipes.completed(old)["model"]["positions"] == "sin_cos_swapped"
    assert loading.changed_key(old, now) == "model.positions was 'sin_cos_swapped' and is now 'sin_cos'"
    same = loading.load_recipe("vit_b_moco_adamw", ["model.positions=sin_cos_swapped"]).model_dump(mode="json")
    assert loading.changed_key(old, same) is None
    assert "positions" not in loading.load_recipe("mixer_b_supervised").model


@pytest.mark.parametrize("name", registry.PRESETS)
def test_what_is_added_to_an_old_description_is_a_key_of_that_model(name):
    completed = history.completed({"name": name})
    assert model_spec(completed).model_dump().items() >= {k: v for k, v in completed.items() if k != "name"}.items()
    assert ("positions" in completed) == (registry.preset(name).family in TRANSFORMERS)


def test_weights_trained_with_different_positions_are_not_taken(tmp_path, capsys):
    old = spec_of(positions="sin_cos_swapped")
    path = save(tmp_path, param=make(old), recipe=recipe(old))
    edit(path, lambda manifest: manifest["recipe"]["model"].pop("positions"))
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    for source in (path, tmp_path / "out"):
        refused(
            "set model.positions: sin_cos_swapped",
            call=lambda: load_into(make(spec_of()), spec_of(), source),  # noqa: B023 - called at once
            path=source,
        )
        assert load_into(make(old, seed=1), old, source).exact


# ---- learned positions


def test_learned_positions_are_vectors_to_the_optimizer():
    model = make(spec_of(positions="learned"))
    assert model.positions.shape == (17, 24)
    groups = {id(p): g for g in parameter_groups(model, 0.1) for p in g["params"]}
    group = groups[id(model.positions)]
    assert (group["weight_decay"], group["vectors"]) == (0.0, True)
    assert (
        layer_decay(0.5, 3)("backbone.positions") == layer_decay(0.5, 3)("backbone.patch_embed.proj.weight") == 0.5**4
    )


def test_learned_positions_are_resized_like_an_image(tmp_path):
    small, large = spec_of(positions="learned"), spec_of(positions="learned", image_size=32)
    written, model = make(small), make(large, seed=1)
    with torch.no_grad():  # a slope along the columns, which interpolation keeps between the outermost centres
        written.positions[1:] = torch.arange(4.0).repeat(4)[:, None]
    save_file(weights(written), tmp_path / "a.safetensors")
    coverage = load_into(model, large, tmp_path / "a.safetensors")
    assert coverage.resized == ("positions",) and not coverage.exact and "learned positions" in coverage.reason
    assert torch.equal(model.positions[0], written.positions[0])
    columns = model.positions[1:].view(8, 8, 24)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(columns.detach(), expected[None, :, None].expand(8, 8, 24))
    line = refused(
        "not positions",
        call=lambda: load_into(model, large, file, mode="block"),
        path=(file := tmp_path / "a.safetensors"),
    )
    assert "bilinear" in line


# ---- published layouts


def deit_file(folder, change=None):
    tensors = under(load("timm_vit"), "weights")
    if change:
        change(tensors)
    save_file(tensors, folder / "deit.safetensors")
    return folder / "deit.safetensors"


def moco_file(folder):
    """A checkpoint of MoCo v3 as its authors' code names it, with everything that is no backbone."""
    tensors = {f"module.base_encoder.{name}": t for name, t in under(load("moco_v3_vit"), "weights").items()}
    tensors |= {name.replace("base", "momentum"): t + 1 for name, t in tensors.items()}
    for part in ("base_encoder.head", "momentum_encoder.head", "predictor"):
        tensors[f"module.{part}.0.weight"] = torch.ones(3, 3)
        tensors[f"module.{part}.1.running_mean"] = torch.ones(3)
        tensors[f"module.{part}.1.num_batches_tracked"] = torch.tensor(7)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "moco.safetensors")
    return folder / "moco.safetensors"


def test_deit_is_imported_and_answers_as_timm(tmp_path, capsys):
    sets = [f"--set=model.{key}={value}" for key, value in TIMM.items() if key != "name"]
    command = ("import", deit_file(tmp_path), tmp_path / "out", "--model", "vit_s16", *sets)
    assert call(capsys, *command, "--set=model.positions=learned")[0] == 0
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    assert read.config.data.mean == (0.485, 0.456, 0.406) and read.config.data.crop_fraction == 0.875
    recorded = load("timm_vit")
    with torch.no_grad():
        torch.testing.assert_close(read(recorded["images"]), recorded["logits"], rtol=1e-4, atol=2e-5)
    code, _, (line,) = call(capsys, *command)  # where OUT is an export already
    assert code == 2 and "set model.positions: learned" in line


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_moco_v3_gives_its_features_and_leaves_the_rest(tmp_path, prefix):
    path = moco_file(tmp_path)
    if not prefix:
        from safetensors.torch import load_file

        save_file({name.removeprefix("module."): tensor for name, tensor in load_file(path).items()}, path)
    recorded, spec = load("moco_v3_vit"), model_spec(MOCO)
    model = make(spec, classes=0)
    coverage = load_into(model, spec, path)
    with torch.no_grad():
        features, _ = model.forward_features(recorded["images"])
    torch.testing.assert_close(features, recorded["features"], rtol=1e-5, atol=1e-5)
    assert coverage.exact and coverage.fresh == ()
    assert f"{prefix}base_encoder.pos_embed" in coverage.skipped  # which the model computes itself
    assert f"{prefix}base_encoder.head.0.weight" in coverage.skipped
    assert not any("num_batches" in name for name in coverage.skipped)


def test_moco_v3_is_not_read_in_the_order_of_version_0_1_0(tmp_path):
    spec = model_spec(MOCO | {"positions": "sin_cos_swapped"})
    refused(
        "are not the model's sin_cos_swapped",
        call=lambda: load_into(make(spec), spec, path),
        path=(path := moco_file(tmp_path)),
    )
    learned = model_spec(MOCO | {"positions": "learned"})
    model = make(learned, classes=0)
    assert load_into(model, learned, path).exact
    torch.testing.assert_close(model.positions[1:].detach(), sin_cos(4, 16), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "fields", "parts"),
    [
        (lambda t: t.pop("pos_embed"), {"positions": "learned"}, ["'positions' is missing", "sin_cos"]),
        (lambda t: t.pop("cls_token"), {"positions": "learned"}, ["holds no 'class_token'", "model.pool: mean"]),
        (lambda t: t.update(odd=torch.ones(2)), {"positions": "learned"}, ["'odd' has no place in the model"]),
        (lambda t: t.update(pos_embed=torch.ones(1, 12, 24)), {"positions": "learned"}, ["11 patches", "square"]),
        (lambda t: t.update(pos_embed=torch.ones(2, 17, 24)), {"positions": "learned"}, ["'pos_embed' is of shape"]),
        (lambda t: t.update(pos_embed=torch.ones(1, 17, 20)), {"positions": "learned"}, ["[17, 20]", "[17, 24]"]),
        (None, {}, ["set model.positions: learned"]),
        (None, {"positions": "learned", "channel_hidden": 40}, ["'blocks.0.mlp.fc1.weight'", "model.channel_hidden"]),
        (None, {"positions": "learned", "pool": "mean"}, ["holds a 'class_token'", "model.pool: cls"]),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, fields, parts):
    spec, path = model_spec(TIMM | fields), deit_file(tmp_path, change)
    refused(*parts, call=lambda: load_into(make(spec), spec, path), path=path)


def test_counters_are_left_out_of_npz_files_too(tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in under(load("timm_vit"), "weights").items()}
    np.savez(tmp_path / "a.npz", **arrays, **{"bn.num_batches_tracked": np.array(3)})
    spec = model_spec(TIMM | {"positions": "learned"})
    assert load_into(make(spec), spec, tmp_path / "a.npz").exact
