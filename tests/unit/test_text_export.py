"""Exports of models of text: the same outputs, the tokenizer in the folder, and one line for what does not fit."""

import json
import os
import pickle

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseTextModel, SparseVisionModel, from_pretrained, pretrained
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.weights.load import load_into
from tests.helpers import text_checkpoints
from tests.helpers.made_checkpoints import call, edit, put
from tests.helpers.text_checkpoints import CLASSES, KINDS, network, save, spec
from tests.helpers.text_sets import LENGTH, VOCABULARY, sentence

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text_checkpoints.learn(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run folder with the tokenizer that a run puts there; returns a function that writes its checkpoint."""
    (tmp_path / "run").mkdir()
    tokenizer.save(tmp_path / "run" / TOKENIZER)

    def write(kind="mlm", **options):
        save(tmp_path / "run/checkpoints", kind, tokenizer, **options)
        return tmp_path / "run"

    return write


def rows(count=3):
    return torch.randint(VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def expected(module, kind):
    """What the network of a stage computes, at every token where it can."""
    places = torch.arange(LENGTH).expand(3, -1)
    return module(rows(), places)[0] if kind == "mlm" else module.backbone(rows())[0] if kind == "finetune_text" else (
        module(rows())[0]
    )  # fmt: skip


@pytest.mark.parametrize("family", ["sparse_gmlp_text", "sparse_blocks", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_folder_that_computes_the_same(tmp_path, capsys, run, tokenizer, kind, family):
    of = spec(family)
    module = network(kind, of)
    folder = run(kind, module=module, of=of)
    code, said, errors = call(capsys, "export", folder, tmp_path / "out")
    assert (code, errors) == (0, []) and f"of stage {kind} at step 4" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", CONFIG, WEIGHTS, TOKENIZER]
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["task"] == KINDS[kind] and "data" not in config
    assert config["text"]["tokenizer"] == tokenizer.sha256 and config["text"]["special"] == tokenizer.special
    for source in (folder, tmp_path / "out"):
        model = SparseTextModel.from_pretrained(source)
        with torch.no_grad():
            assert torch.allclose(model(rows()), expected(module, kind), atol=1e-6)
        assert list(model.classes) == (CLASSES if kind == "finetune_text" else [])
        assert model.tokenizer.encode(sentence(3)) == tokenizer.encode(sentence(3))
    model.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_hidden_places_alone_are_the_same_numbers(run):
    model, places = SparseTextModel.from_pretrained(run()), torch.tensor([[5, 1], [0, 15], [7, 7]])
    with torch.no_grad():
        there = model(rows())[torch.arange(3)[:, None], places]
        assert torch.allclose(model.restored(rows(), places), there, atol=1e-6)


def test_texts_become_rows(run, tokenizer):
    model, special = SparseTextModel.from_pretrained(run()), tokenizer.special
    words = tokenizer.encode("the state")
    (row,) = model.preprocess(["the state"]).tolist()
    padding = [special["pad"]] * (LENGTH - len(words) - 2)
    assert row == [special["cls"], *words, special["sep"], *padding]
    pair = model.preprocess(["the"], ["of"]).tolist()[0]
    assert pair[:5] == [
        special["cls"],
        *tokenizer.encode("the"),
        special["sep"],
        *tokenizer.encode("of"),
        special["sep"],
    ]
    assert model.preprocess([sentence(1) * 9]).shape == (1, LENGTH) and model.preprocess([]).shape == (0, LENGTH)
    with pytest.raises(UserError, match="2 texts and 1 second texts"):
        model.preprocess(["a", "b"], ["c"])
    with pytest.raises(UserError, match="give a list"):
        model.preprocess("a text")


def test_a_mask_is_a_token_with_the_space_before_it(run, tokenizer):
    model = SparseTextModel.from_pretrained(run())
    row = model.preprocess(["the [MASK] of"]).tolist()[0]
    plain = model.preprocess(["the state of"]).tolist()[0]
    hidden = row.index(tokenizer.special["mask"])
    assert row[:hidden] == plain[:hidden] and row[hidden + 1 :][:1] == tokenizer.encode(" of")
    # only here: the same string in data is text
    assert tokenizer.special["mask"] not in tokenizer.encode("the [MASK] of")


@pytest.mark.parametrize(
    ("tokens", "part"),
    [
        (torch.zeros(2, LENGTH + 1, dtype=torch.int64), f"rows of {LENGTH} tokens"),
        (torch.zeros(2, LENGTH), "int64"),
        (torch.full((2, LENGTH), VOCABULARY), f"has tokens 0 to {VOCABULARY - 1}"),
        (torch.full((2, LENGTH), -1), "has tokens 0 to"),
    ],
)
def test_rows_that_are_none(run, tokens, part):
    with pytest.raises(UserError, match=part):
        SparseTextModel.from_pretrained(run())(tokens)


def test_the_right_class_for_every_model(tmp_path, run):
    folder = run()
    assert isinstance(from_pretrained(folder), SparseTextModel)
    with pytest.raises(UserError, match="takes text, and this needs a model of images"):
        SparseVisionModel.from_pretrained(folder)
    assert isinstance(from_pretrained("cifar10"), SparseVisionModel)
    with pytest.raises(UserError, match="takes images, and this needs a model of text"):
        SparseTextModel.from_pretrained("cifar10")


def test_the_tokenizer_is_asked_for_where_it_is_not(tmp_path, capsys, tokenizer):
    checkpoint, out = save(tmp_path, "mlm", tokenizer), tmp_path / "out"
    code, _, (line,) = call(capsys, "export", checkpoint, out)
    assert code == 2 and "--tokenizer FILE" in line and not out.exists()
    code, _, (line,) = call(capsys, "predict", checkpoint, "--text", "the [MASK]")
    assert code == 2 and "--tokenizer FILE" in line
    assert SparseTextModel.from_pretrained(checkpoint)(rows()).shape == (3, LENGTH, VOCABULARY), "tokens need none"
    wrong = tmp_path / "wrong.model"
    wrong.write_bytes(b"something else")
    code, _, (line,) = call(capsys, "export", checkpoint, out, "--tokenizer", wrong)
    assert code == 2 and "not the tokenizer that the model was trained with" in line
    right = tmp_path / "right.model"
    tokenizer.save(right)
    assert call(capsys, "export", checkpoint, out, "--tokenizer", right)[0] == 0
    assert (out / TOKENIZER).read_bytes() == right.read_bytes()
    # a manifest that does not say what the rows are, as an earlier one: the tokenizer tells
    edit(checkpoint, lambda manifest: manifest.pop("text"))
    assert call(capsys, "export", checkpoint, tmp_path / "second", "--tokenizer", right)[0] == 0
    assert (tmp_path / "second" / CONFIG).read_bytes() == (out / CONFIG).read_bytes()
    code, _, (line,) = call(capsys, "export", out, tmp_path / "third", "--tokenizer", right, "--format", "pt2")
    assert code == 2 and "leave out --tokenizer" in line


def test_the_card(tmp_path, capsys, run):
    assert call(capsys, "export", run("finetune_text"), tmp_path / "out")[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "text-classification"
    assert f"rows of {LENGTH} tokens out of {VOCABULARY}" in card and "3 classes" in card and "pixels" not in card
    assert "SparseTextModel.from_pretrained" in card and "| finetune_text (finetune_text) | 4 steps" in card


def test_training_starts_from_an_export(tmp_path, capsys, run):
    of = spec()
    module = network("mlm", of)
    assert call(capsys, "export", run(module=module, of=of), tmp_path / "out")[0] == 0
    fresh, bias = registry.build(of), torch.zeros(VOCABULARY)
    init_weights(fresh, 1)
    coverage = load_into(fresh, of, tmp_path / "out", output_bias=bias)
    assert torch.equal(bias, module.bias) and "output_bias" in coverage.loaded and coverage.exact
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, dict(module.backbone.named_parameters())[name]), name
    classifier = registry.build(of, 3)
    init_weights(classifier, 1)
    assert "output_bias" in load_into(classifier, of, tmp_path / "out").skipped
    run_coverage = load_into(fresh, of, tmp_path / "run", output_bias=bias.zero_())
    assert torch.equal(bias, module.bias) and run_coverage.loaded == coverage.loaded


def test_the_hub_is_asked_for_the_tokenizer_of_text(tmp_path, capsys, run, monkeypatch):
    out, asked = tmp_path / "out", []
    assert call(capsys, "export", run(), out)[0] == 0
    monkeypatch.setattr(pretrained, "download", lambda repo, revision, token: (out / CONFIG, out / WEIGHTS))
    monkeypatch.setattr(pretrained, "download_file", lambda repo, name, *_: asked.append((repo, name)))
    model = SparseTextModel.from_pretrained("someone/language")
    assert asked == [("someone/language", TOKENIZER)] and model.preprocess(["the"]).shape == (1, LENGTH)


def test_a_checkpoint_far_from_its_run_takes_no_tokenizer_that_lies_around(tmp_path, capsys, tokenizer):
    (tmp_path / TOKENIZER).write_bytes(b"of something else")
    checkpoint = save(tmp_path / "copies", "mlm", tokenizer)
    code, _, (line,) = call(capsys, "export", checkpoint, tmp_path / "out")
    assert code == 2 and "--tokenizer FILE" in line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (put("spec", "vocabulary", 10**12), [CONFIG, "unlike the model's"]),
        (
            lambda c: (put("spec", "vocabulary", 10**7)(c), put("text", "vocabulary", 10**7)(c)),
            [WEIGHTS, "token_embed"],
        ),
        (lambda c: (put("spec", "length", 10**7)(c), put("text", "length", 10**7)(c)), [WEIGHTS, "is of shape"]),
        (put("spec", "depth", 10**9), [WEIGHTS, "claims 1000000000 blocks"]),
        (put("text", "tokenizer", "0" * 64), [TOKENIZER, "not the tokenizer"]),
        (put("text", "tokenizer", "../../x"), [CONFIG, "sha256"]),
        (put("text", "special", {"pad": 0}), [CONFIG, "special"]),
        (put("text", "special", "mask", 5), [TOKENIZER, "its tokens are not those"]),
        (put("text", None), [CONFIG, "text: null"]),
        (put("task", "classes"), [CONFIG, "task classes with 0 classes"]),
        (put("task", "features"), [WEIGHTS, "'output_bias' has no place"]),
        (put("task", "__import__"), [CONFIG, "task"]),
        (put("data", {}), [CONFIG, "data"]),
        (lambda c: c.pop("text"), [CONFIG, "spec"]),
    ],
)
def test_configs_of_strangers(tmp_path, capsys, run, change, parts):
    out = tmp_path / "out"
    assert call(capsys, "export", run(), out)[0] == 0
    config = json.loads((out / CONFIG).read_text())
    change(config)
    (out / CONFIG).write_text(json.dumps(config))
    code, said, errors = call(capsys, "predict", out, "--text", "the [MASK]")
    assert code == 2 and not said and len(errors) == 1 and errors[0].isprintable(), errors
    assert all(part in errors[0] for part in parts), errors[0]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/evil_tokenizer",)


def test_files_of_strangers(tmp_path, capsys, run):
    out = tmp_path / "out"
    assert call(capsys, "export", run(), out)[0] == 0
    before = (out / TOKENIZER).read_bytes()
    for content in (pickle.dumps(Evil()), before[:-1], before + b"\0", b""):
        (out / TOKENIZER).write_bytes(content)
        code, _, (line,) = call(capsys, "predict", out, "--text", "the [MASK]")
        assert code == 2 and TOKENIZER in line and "not the tokenizer" in line
    (out / TOKENIZER).unlink()
    code, _, (line,) = call(capsys, "predict", out, "--text", "the [MASK]")
    assert code == 2 and "missing" in line
    (out / TOKENIZER).write_bytes(before)
    tensors = load_file(out / WEIGHTS)
    tensors["output_bias"] = tensors["output_bias"][:-1].clone()
    save_file(tensors, out / WEIGHTS)
    code, _, (line,) = call(capsys, "predict", out, "--text", "the [MASK]")
    assert code == 2 and "'output_bias'" in line
