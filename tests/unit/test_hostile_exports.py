"""Exports of strangers: a config is believed as far as the tensors bear it out, and nothing in it is run."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.made_checkpoints import call, put, save

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def export(tmp_path, capsys):
    assert call(capsys, "export", save(tmp_path), tmp_path / "out")[0] == 0
    return tmp_path / "out"


def refused(capsys, export, *parts):
    code, said, errors = call(capsys, "predict", export, "a.png")
    assert code == 2 and len(errors) == 1 and not said, errors
    assert errors[0].isprintable() and all(part in errors[0] for part in parts), errors[0]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (put("format", 2), [CONFIG, "format 2, this version reads 1"]),
        (put("library_name", "timm"), [CONFIG, "not of this package"]),
        (put("spec", "family", "resnet"), [CONFIG, "family"]),
        (put("spec", "width", 2**80), [WEIGHTS, "no sparse_mlp_digits can be built"]),
        (put("spec", "width", -1), [CONFIG, "spec.sparse_mlp.width"]),
        (put("spec", "dense_blocks", 10**12), [WEIGHTS, "claims 1000000000001 blocks"]),
        (put("spec", "moe_c", {"experts": 10**9, "hidden": 8}), [WEIGHTS, "claims more experts"]),
        (put("spec", "moe_c", {"experts": 3, "hidden": 8}), [WEIGHTS, "blocks.2.moe_c"]),
        (put("spec", "checkpoint_blocks", "os.system"), [CONFIG, "checkpoint_blocks"]),
        (put("classes", ["a"] * 6), [WEIGHTS, "'head.weight' is of shape [5, 12]"]),
        (put("classes", [1, 2, 3, 4, 5]), [CONFIG, "classes.0"]),
        (put("name", "a\x1b[2J"), [CONFIG, "name"]),
        (put("moe", "priority", "first"), [CONFIG, "priority"]),
        (put("data", "mean", [0.0, float("nan"), 0.0]), [CONFIG, "mean"]),
        (put("data", "crop_fraction", 0), [CONFIG, "crop_fraction"]),
        (put("auto_map", {"AutoModel": "evil.Model"}), [CONFIG, "auto_map"]),
        (lambda config: config.pop("spec"), [CONFIG, "spec"]),
        (lambda config: config.pop("origin"), [CONFIG, "origin"]),
    ],
)
def test_configs(export, capsys, change, parts):
    config = json.loads((export / CONFIG).read_text())
    change(config)
    (export / CONFIG).write_text(json.dumps(config))
    refused(capsys, export, *parts)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"format": 1, "format": 1}', "[" * 100_000, "\xff"])
def test_configs_that_are_none(export, capsys, text):
    (export / CONFIG).write_bytes(text.encode("latin-1"))
    refused(capsys, export, CONFIG, "not the config of a model")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("norm.bias"), ["'norm.bias' of sparse_mlp_digits is missing"]),
        (lambda t: t.update(more=torch.ones(1)), ["'more' has no place"]),
        (lambda t: t.update({"norm.bias": torch.ones(11)}), ["'norm.bias' is of shape [11]", "[12]"]),
        (lambda t: t.update({"norm.bias": torch.ones(12, dtype=torch.int8)}), ["'norm.bias' is of type torch.int8"]),
        (lambda t: t.update({"norm.bias": torch.full((12,), torch.inf)}), ["'norm.bias' holds NaN or infinity"]),
        (lambda t: t.update({"../../x": torch.ones(1)}), ["'../../x' is no tensor name"]),
    ],
)
def test_tensors(export, capsys, change, parts):
    tensors = load_file(export / WEIGHTS)
    change(tensors)
    save_file(tensors, export / WEIGHTS)
    refused(capsys, export, WEIGHTS, *parts)


def test_truncated_flipped_and_missing_files(export, capsys):
    content = (export / WEIGHTS).read_bytes()
    (export / WEIGHTS).write_bytes(content[:-1])
    refused(capsys, export, WEIGHTS, "cannot be read")
    (export / WEIGHTS).write_bytes(bytes([content[0] ^ 128]) + content[1:])
    refused(capsys, export, WEIGHTS, "cannot be read")
    (export / WEIGHTS).unlink()
    refused(capsys, export, WEIGHTS, "missing")
    (export / WEIGHTS).write_bytes(content)
    (export / CONFIG).unlink()
    refused(capsys, export, CONFIG, "missing")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_links_out_of_the_folder(export, capsys, name):
    (export / name).rename(export.parent / "elsewhere")
    (export / name).symlink_to(export.parent / "elsewhere")
    refused(capsys, export, name, "a link out of the folder")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("opened",)


def test_pickles_are_not_opened(export, capsys, monkeypatch):
    monkeypatch.chdir(export.parent)
    (export / WEIGHTS).write_bytes(pickle.dumps(Harmful()))
    refused(capsys, export, WEIGHTS, "cannot be read")
    torch.save(Harmful(), export / WEIGHTS)
    refused(capsys, export, WEIGHTS, "cannot be read")
    assert not (export.parent / "opened").exists()
