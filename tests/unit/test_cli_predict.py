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
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.loader import ShardDataset
from sparse_mlp_ds.data.order import BatchIndices
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.shards.scan import make_index
from sparse_mlp_ds.train.evaluate import outcomes
from tests.helpers.made_checkpoints import call, recipe, save
from tests.helpers.tars import write_tar
from tests.helpers.weight_files import SPARSE, make

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


def test_evaluate_takes_what_verify_takes(tmp_path, capsys, model):
    """A folder with an index, one with val/ and train/, one with train/ alone, and images that stay files."""
    (tmp_path / "both").mkdir()
    train, val = shards(tmp_path / "both/train", 6), shards(tmp_path / "both/val", 9)
    (tmp_path / "alone").mkdir()
    shards(tmp_path / "alone/train", 4)
    for number in range(5):
        path = tmp_path / f"files/{CLASSES[number]}/x.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(number))
    assert call(capsys, "shards", "index", tmp_path / "files", "--files", "imagefolder")[0] == 0
    expected = {train: 6, val: 9, tmp_path / "both": 9, tmp_path / "alone": 4, tmp_path / "files": 5}
    for folder, count in expected.items():
        code, said, errors = call(capsys, "evaluate", model, folder, "--workers=0")
        assert code == 0 and said.startswith(f"{count} images: ")
        assert call(capsys, "shards", "verify", folder, "--workers=1")[0] == 0
        split = {"both": "val", "alone": "train"}.get(folder.name)
        assert errors == ([f"{folder}: measuring {split}/"] if split else [])
    (tmp_path / "nothing").mkdir()
    lines = [call(capsys, *command, tmp_path / "nothing") for command in (("evaluate", model), ("shards", "verify"))]
    assert [code for code, *_ in lines] == [2, 2] and lines[0][2] == lines[1][2]


def test_evaluate_in_a_line(tmp_path, capsys, model):
    code, said, _ = call(capsys, "evaluate", model, shards(tmp_path / "val"), "--workers=0")
    assert code == 0 and said.startswith("13 images: top-1 ")


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
    batch = dataset[BatchIndices(np.arange(3), np.arange(3))]
    expected = normalize(to_unit(batch.inputs[:, 0]), data)
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


def test_predict_takes_folders_of_any_depth(tmp_path, capsys, model):
    paths = [tmp_path / "photos" / name for name in ("a/deep/2.png", "a/x.png", "b.PNG")]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    (tmp_path / "photos/notes.txt").write_text("none")
    (tmp_path / "z.png").write_bytes(encoded(7))
    code, said, errors = call(capsys, "predict", model, tmp_path / "z.png", tmp_path / "photos", "--json")
    assert code == 0 and len(errors) == 1 and "notes.txt" in errors[0]
    assert [answer["image"] for answer in json.loads(said)] == [str(path) for path in (tmp_path / "z.png", *paths)]
    (tmp_path / "empty").mkdir()
    code, _, (line,) = call(capsys, "predict", model, tmp_path / "empty")
    assert code == 2 and "empty: no images here or below" in line


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
