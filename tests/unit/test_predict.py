"""`sparse-mlp-ds predict` and `evaluate`: what training's own evaluation says, from wherever a model lies."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_mlp_ds.data import index, sources
from sparse_mlp_ds.data.augment import normalize, to_unit
from sparse_mlp_ds.data.loader import ShardDataset
from sparse_mlp_ds.data.order import Slots
from sparse_mlp_ds.data.scan import make_index
from sparse_mlp_ds.data.sections import Data
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.train.evaluate import outcomes
from tests.unit.made_checkpoints import call, recipe, save
from tests.unit.tars import write_tar
from tests.unit.weight_files import SPARSE, make

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def encoded(number, kind="png", size=(20, 17)):
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(size).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def model(tmp_path):
    data = recipe()["data"] | {"crop_fraction": 0.8}
    return save(tmp_path, recipe=recipe(data=data))


def shards(folder, count=13):
    folder.mkdir()
    members = [part for n in range(count) for part in ((f"{n:03d}.png", encoded(n)), (f"{n:03d}.cls", b"%d" % (n % 5)))]
    write_tar(folder / "some-000000.tar", *members)
    make_index(folder, CLASSES)
    return folder


@pytest.mark.parametrize("flags", [[], ["--capacity-factor", "0.4"], ["--capacity-factor=0.4", "--priority=position"]])
def test_evaluate_says_what_training_would(tmp_path, capsys, model, flags):
    folder = shards(tmp_path / "val")
    call(capsys, "export", model, tmp_path / "out")
    found = []
    for source in (tmp_path / "out", model):
        code, said, errors = call(capsys, "evaluate", source, folder, "--workers=0", "--batch-size=5", "--json", *flags)
        assert (code, errors) == (0, [])
        found.append(json.loads(said))
    assert found[0] == found[1]
    network = make(SPARSE)
    priority = "position" if "--priority=position" in flags else "importance"
    for layer in network.modules():
        if flags and isinstance(layer, MoELayer):
            layer.routing = replace(layer.routing, evaluation_capacity=0.4, priority=priority)
    data = Data(train=str(folder), val=str(folder), workers=0, **pixels())
    (outcome,) = outcomes(lambda images: network(images)[0].float(), index.load(folder), data, 16, 5)
    expected = outcome.metrics() | {"classes": CLASSES, "top1_by_class": outcome.per_class()}
    assert found[0] == expected and expected["images"] == 13


def pixels():
    return {"classes": 5, "crop_fraction": 0.8, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}


def test_evaluate_in_a_line(tmp_path, capsys, model):
    code, said, _ = call(capsys, "evaluate", model, shards(tmp_path / "val"), "--workers=0")
    assert code == 0 and said.startswith("13 images: top-1 ")


def test_other_classes_are_refused(tmp_path, capsys, model):
    folder = shards(tmp_path / "val")
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(record | {"classes": [*CLASSES, "fly"]}))
    code, _, (line,) = call(capsys, "evaluate", model, folder, "--workers=0")
    assert code == 2 and "6 classes" in line and "knows 5" in line and "fine-tune" in line
    (folder / "index.json").write_text(json.dumps(record | {"classes": ["bee", *CLASSES[1:]]}))
    code, _, (line,) = call(capsys, "evaluate", model, folder, "--workers=0")
    assert code == 0 and line == "WARNING: the model's class 'ant' is the shards' 'bee'"


@pytest.mark.parametrize(
    "flags", [["--batch-size=0"], ["--workers=-1"], ["--capacity-factor=0"], ["--capacity-factor=nan"]]
)
def test_senseless_numbers_are_refused(tmp_path, capsys, model, flags):
    code, _, (line,) = call(capsys, "evaluate", model, tmp_path, *flags)
    assert code == 2 and "evaluate:" in line


def test_preprocess_is_what_evaluation_does(tmp_path, model):
    """Of every kind of input, a large JPEG too, which evaluation decodes at a fraction of its size."""
    files = []
    for number, (kind, size) in enumerate([("png", (20, 17)), ("jpeg", (133, 150)), ("jpeg", (9, 30))]):
        files.append(tmp_path / f"{number}.{kind}")
        files[-1].write_bytes(encoded(number, kind, size))
    members = [part for f in files for part in ((f.name, f.read_bytes()), (f"{f.stem}.cls", b"0"))]
    write_tar(tmp_path / "tars/some-000000.tar", *members)
    made = make_index(tmp_path / "tars", CLASSES)
    data = Data(train="x", val="x", workers=0, **pixels())
    dataset = ShardDataset(made, 16, 5, crop_fraction=0.8, cache=sources.cache(data))
    batch = dataset[Slots(np.arange(3), np.arange(3))]
    expected = normalize(to_unit(batch.images[:, 0]), data)
    network = SparseVisionModel.from_pretrained(model)
    assert torch.equal(network.preprocess(files), expected)
    assert torch.equal(network.preprocess([file.read_bytes() for file in files]), expected)
    opened = [Image.open(file) for file in files]
    assert torch.equal(network.preprocess(opened), expected)
    assert opened[1].size == (133, 150), "the caller's image is as it was"
    loaded = Image.open(files[0])
    loaded.load()
    assert torch.equal(network.preprocess([loaded]), expected[:1])
    assert network.preprocess([]).shape == (0, 3, 16, 16)


def test_predict_names_the_likeliest_and_what_it_could_not_read(tmp_path, capsys, model):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(number))
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(paths[0].read_bytes()[:40])
    code, said, errors = call(capsys, "predict", model, paths[0], broken, *paths[1:], missing, "--top=2", "--json")
    assert code == 2
    assert [line.partition(":")[0] for line in errors] == ["error", "error"]
    assert str(broken) in errors[0] and "decoded" in errors[0]
    assert str(missing) in errors[1] and "No such file" in errors[1]
    answers = json.loads(said)
    assert [answer["image"] for answer in answers] == [str(path) for path in paths]
    network = SparseVisionModel.from_pretrained(model)
    with torch.no_grad():
        shares = network(network.preprocess(paths)).softmax(dim=1)
    for answer, share in zip(answers, shares, strict=True):
        assert [one["class"] for one in answer["classes"]] == share.topk(2).indices.tolist()
        assert [one["probability"] for one in answer["classes"]] == pytest.approx(share.topk(2).values.tolist())
        assert all(one["name"] == CLASSES[one["class"]] for one in answer["classes"])


def test_predict_prints_a_table(tmp_path, capsys, model):
    (tmp_path / "a.png").write_bytes(encoded(0))
    code, said, errors = call(capsys, "predict", model, tmp_path / "a.png", tmp_path / "a.png", "--top=1")
    assert (code, errors) == (0, []) and said.count("%") == 2, "each is answered, the same one too"
    code, said, errors = call(capsys, "predict", model, tmp_path / "a.png")
    assert all(name in said for name in CLASSES) and said.count("%") == 5


def test_a_file_of_weights_is_no_model(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"")
    code, _, (line,) = call(capsys, "predict", tmp_path / "a.safetensors", "a.png")
    assert code == 2 and "sparse-mlp-ds import" in line
    code, _, (line,) = call(capsys, "predict", tmp_path, "a.png")
    assert code == 2 and "no export, run or checkpoint" in line
    code, _, (line,) = call(capsys, "predict", tmp_path / ("x" * 300), "a.png")
    assert code == 2 and "File name too long" in line


def test_what_was_passed_over_is_said(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(encoded(0))
    for step in (2, 4):
        save(tmp_path / "run/checkpoints", step)
    (tmp_path / "run/checkpoints/step_4/rank_00000.safetensors").write_bytes(b"")
    code, said, (line,) = call(capsys, "predict", tmp_path / "run", tmp_path / "a.png", "--json")
    assert code == 0 and len(json.loads(said)) == 1
    assert line.startswith("WARNING: passed over ") and "step_4" in line
