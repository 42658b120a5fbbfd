"""Weights from files: three layouts in, the same logits out, or one line that names what differs."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.weights.load import load_into
from tests.helpers.weight_files import DENSE, SPARSE, as_google, as_timm, logits, make, refused, weights, write


@pytest.mark.parametrize("layout", ["own", "wrapped", "timm", "google"])
def test_every_layout_gives_back_the_logits(tmp_path, layout):
    written, model = make(DENSE), make(DENSE, seed=1)
    coverage = load_into(model, DENSE, write(tmp_path, layout, weights(written)))
    assert torch.equal(logits(model), logits(written))
    assert set(coverage.loaded) == set(weights(model))
    assert (coverage.fresh, coverage.resized, coverage.exact) == ((), (), True)
    assert coverage.skipped == (("projector.0.weight",) if layout == "wrapped" else ())


def test_a_sparse_model_gives_back_its_logits(tmp_path):
    written, model = make(SPARSE), make(SPARSE, seed=1)
    assert load_into(model, SPARSE, write(tmp_path, "own", weights(written))).exact
    assert torch.equal(logits(model), logits(written))


def test_half_and_double_precision_become_float32(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        tensors = {name: tensor.to(dtype) for name, tensor in weights(make(DENSE)).items()}
        model = make(DENSE, seed=1)
        load_into(model, DENSE, write(tmp_path, "timm", tensors))
        assert all(torch.equal(value, tensors[name].float()) for name, value in weights(model).items())


@pytest.mark.parametrize("classes, head", [(7, True), (0, True), (5, False)])
def test_the_head_stays_fresh_where_it_does_not_fit_or_is_not_wanted(tmp_path, classes, head):
    written, model = make(DENSE), make(DENSE, seed=1, classes=classes)
    before = weights(model)
    coverage = load_into(model, DENSE, write(tmp_path, "own", weights(written)), head=head)
    heads = tuple(name for name in before if name.startswith("head."))
    assert coverage.fresh == heads
    assert set(coverage.skipped) == {"head.weight", "head.bias"}
    assert all(torch.equal(before[name], weights(model)[name]) for name in heads)


def test_the_table_names_modules_and_the_verdict(tmp_path):
    spec = DENSE.model_copy(update={"image_size": 24})
    text = load_into(make(spec, classes=7), spec, write(tmp_path, "google", weights(make(DENSE)))).table()
    lines = [" ".join(re.sub("[│┃]", " ", line).split()) for line in text.splitlines()]
    assert "resized 9 blocks 0-2: mlp_tokens" in lines
    assert "fresh 2 head" in lines and "skipped 2 head" in lines
    assert "blocks 0-2: mlp_channels, mlp_tokens, norm1, norm2" in lines
    assert "step 0 not as in the file: 9 token-mixing tensors were resized" in lines


@pytest.mark.parametrize(
    ("layout", "name", "parts"),
    [
        ("timm", "blocks.1.mlp_tokens.fc1.weight", ["'blocks.1.mlp_tokens.fc1.weight' is missing", "rename"]),
        ("timm", "stem.proj.weight", ["'patch_embed.proj.weight' is missing", "rename 'stem.proj.weightx'"]),
        (
            "google",
            "MixerBlock_2/LayerNorm_1/scale",
            ["'blocks.2.norm2.weight' is missing", "rename 'MixerBlock_2/LayerNorm_1/scalex'"],
        ),
        ("own", "norm.bias", ["'norm.bias' is missing", "rename 'norm.biasx'"]),
    ],
)
def test_a_renamed_tensor_is_named_and_nothing_changes(tmp_path, layout, name, parts):
    tensors = weights(make(DENSE))
    if layout == "google":
        path, arrays = tmp_path / "a.npz", as_google(tensors)
        arrays[f"{name}x"] = arrays.pop(name)
        np.savez(path, **arrays)
    else:
        path, tensors = tmp_path / "a.safetensors", as_timm(tensors) if layout == "timm" else tensors
        tensors[f"{name}x"] = tensors.pop(name)
        save_file(tensors, path)
    model = make(DENSE, seed=1)
    before = weights(model)
    refused(*parts, call=lambda: load_into(model, DENSE, path), path=path)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


@pytest.mark.parametrize(
    ("update", "parts"),
    [
        ({"dense_blocks": 4}, ["'blocks.3.norm1.weight' is missing", "give the model that wrote the file"]),
        ({"dense_blocks": 2}, ["'blocks.2.", "has no place in the model"]),
        ({"token_hidden": 9}, ["'blocks.0.mlp_tokens.fc1.weight'", "[10, 16]", "[9, 16]", "set model.token_hidden"]),
        ({"channel_hidden": 9}, ["'blocks.0.mlp_channels.fc1.weight'", "set model.channel_hidden"]),
        ({"width": 9}, ["'stem.proj.weight' is of shape [12, 3, 4, 4]", "set model.width and model.patch_size"]),
        ({"patch_size": 8}, ["'stem.proj.weight' is of shape [12, 3, 4, 4]", "[12, 3, 8, 8]"]),
    ],
)
def test_another_model_is_refused(tmp_path, update, parts):
    path = write(tmp_path, "timm", weights(make(DENSE)))
    spec = DENSE.model_copy(update=update)
    refused(*parts, call=lambda: load_into(make(spec), spec, path), path=path)


def test_a_dense_file_for_a_sparse_model_points_to_upcycling(tmp_path):
    path = write(tmp_path, "own", weights(make(DENSE)))
    refused("blocks.2 is dense in the file", "upcycling", call=lambda: load_into(make(SPARSE), SPARSE, path), path=path)
