"""`predict`, `evaluate`, `embed`, `import` and `create_model` for models of text."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds import create_model
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import masking
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseTextModel, graph
from sparse_mlp_ds.shards import packing, squad, text
from sparse_mlp_ds.shards.row_writer import Layout
from tests.helpers import text_sets
from tests.helpers.made_checkpoints import call
from tests.helpers.text_checkpoints import network, save, spec
from tests.helpers.text_sets import LENGTH, VOCABULARY, sentence


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set with three classes, and its tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    made = text_sets.texts(40, classes=3)
    text_sets.make(folder / "texts", made, text_sets.texts(9, classes=3, first=100), length=LENGTH)
    return folder / "texts"


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer(data / "train" / TOKENIZER)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """A checkpoint of each kind, with its tokenizer beside the files, and of no particular skill."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in ("mlm", "finetune_text", "finetune_span"):
        names = {"classes": [f"class {n}" for n in range(3)]} if kind == "finetune_text" else {}
        found[kind] = save(folder / kind, kind, tokenizer, **names)
        tokenizer.save(found[kind] / TOKENIZER)
    return found


def rows_of(folder):
    """The rows of a data set in the order of its index, [N, n]."""
    index = index_file.load(folder)
    dtype = index.text.dtype
    found = []
    for number in range(len(index)):
        shard, position = index.locate(number)
        with open(shard.path, "rb") as tar:
            tar.seek(int(shard.offsets[position]))
            found.append(np.frombuffer(tar.read(int(shard.sizes[position])), dtype).astype(np.int64))
    return torch.from_numpy(np.stack(found))


def test_hidden_tokens(capsys, models):
    texts = ["the [MASK] of the [MASK]", "war and [MASK]"]
    code, said, errors = call(capsys, "predict", models["mlm"], "--text", texts[0], "--text", texts[1], "--json")
    assert (code, errors) == (0, [])
    first, second = json.loads(said)
    assert [one["text"] for one in (first, second)] == texts
    assert [len(first["masks"]), len(second["masks"])] == [2, 1] and len(first["masks"][0]) == 5
    model = SparseTextModel.from_pretrained(models["mlm"])
    tokens = model.preprocess(texts[1:])
    place = tokens[0].tolist().index(model.text.special["mask"])
    with torch.no_grad():
        wanted = model(tokens)[0, place].softmax(dim=0)
    best = second["masks"][0][0]
    assert best["token"] == int(wanted.argmax()) and best["probability"] == pytest.approx(float(wanted.max()), rel=1e-5)
    assert best["piece"] == model.tokenizer.piece(best["token"])
    code, said, _ = call(capsys, "predict", models["mlm"], "--text", texts[0], "--top", 2)
    assert code == 0 and said.count("%") == 4


def test_classes_of_texts_and_pairs(capsys, models):
    model = SparseTextModel.from_pretrained(models["finetune_text"])
    code, said, errors = call(
        capsys, "predict", models["finetune_text"], "--text", sentence(1), "--pair", "the war", "--json"
    )
    assert (code, errors) == (0, [])
    (answer,) = json.loads(said)
    with torch.no_grad():
        wanted = model(model.preprocess([sentence(1)], ["the war"]))[0].softmax(dim=0)
    assert answer["pair"] == "the war" and answer["classes"][0]["name"] == f"class {int(wanted.argmax())}"
    assert [one["probability"] for one in answer["classes"]] == pytest.approx(
        wanted.sort(descending=True).values.tolist()
    )
    code, said, _ = call(capsys, "predict", models["finetune_text"], "--text", "a", "--text", "b", "--top", 1)
    assert code == 0 and said.count("%") == 2 and "class" in said


def test_an_answer_is_the_best_span_of_all_windows(capsys, models, tokenizer):
    context = " ".join(sentence(n) for n in range(6))
    code, said, _ = call(
        capsys, "predict", models["finetune_span"], "--question", "who", "--context", context, "--json"
    )
    (found,) = json.loads(said)
    assert code == 0 and context[found["start"] : found["end"]].strip() == found["answer"] != ""
    model = SparseTextModel.from_pretrained(models["finetune_span"])
    tokens, offsets = tokenizer.encode_with_offsets(context)
    asked, best = tokenizer.encode("who"), (-1e9, "")
    stride = (LENGTH - 3 - len(asked)) // 2
    windows = list(packing.windows_of(model.text, asked, tokens, stride))
    assert len(windows) > 3
    for begin, end, first, row in windows:  # every span of every window, one by one
        with torch.no_grad():
            logits = model(torch.from_numpy(row.astype(np.int64)))[0]
        for one in range(first, first + end - begin):
            for last in range(one, first + end - begin):
                score = float(logits[one, 0] + logits[last, 1])
                if score > best[0] + 1e-5:
                    best = score, context[offsets[begin + one - first][0] : offsets[begin + last - first][1]].strip()
    assert found["score"] == pytest.approx(best[0], abs=1e-4) and found["answer"] == best[1]
    code, said, _ = call(capsys, "predict", models["finetune_span"], "--question", "who", "--context", context)
    assert code == 0 and "score of no answer" in said


@pytest.mark.parametrize(
    ("kind", "arguments", "part"),
    [
        ("mlm", ["--text", "the state"], "has no [MASK]"),
        ("mlm", ["--text", "the state " * 20 + "[MASK]"], "longer than 16 tokens"),
        ("mlm", [], "give --text"),
        ("mlm", ["a.png"], "takes text; give --text instead of images"),
        ("mlm", ["a.png", "--text", "x"], "images and texts are for different models"),
        ("mlm", ["--text", "x", "--pair", "y"], "has no use for --pair"),
        ("finetune_text", ["--question", "x", "--context", "y"], "give --text"),
        ("finetune_text", ["--text", "x", "--text", "y", "--pair", "z"], "2 --text and 1 --pair"),
        ("finetune_span", ["--question", "who"], "give --question and --context"),
        ("finetune_span", ["--question", "who", "--context", ""], "the context is empty"),
        ("finetune_span", ["--question", sentence(1), "--context", "x"], "fill a row of 16; shorten it"),
        ("finetune_span", ["--question", "who", "--context", "a", "--context", "b"], "one for each"),
        ("cifar10", ["--text", "x"], "takes images, and this needs a model of text"),
        ("cifar10", [], "give images"),
    ],
)
def test_what_a_model_has_no_use_for(capsys, models, kind, arguments, part):
    code, said, errors = call(capsys, "predict", models.get(kind, kind), *arguments)
    assert code == 2 and not said and len(errors) == 1 and part in errors[0], errors


def test_evaluate_measures_perplexity(capsys, models, data):
    code, said, errors = call(capsys, "evaluate", models["mlm"], data, "--json", "--workers", 0, "--batch-size", 4)
    found = json.loads(said)
    assert code == 0 and found["sequences"] == 9 and "measuring val/" in errors[0]
    model = SparseTextModel.from_pretrained(models["mlm"])
    tokens = rows_of(data / "val")
    assert sorted(tokens.tolist()) == sorted(model.preprocess([sentence(n) for n in range(100, 109)]).tolist())
    masked = masking.mask(tokens, masking.keys_of_held_out(torch.arange(9)), model.text)
    with torch.no_grad():
        logits = model.restored(masked.inputs, masked.places).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits.double(), masked.targets.flatten())
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    code, said, _ = call(capsys, "evaluate", models["mlm"], data / "val", "--workers", 0)
    assert code == 0 and said.startswith("9 sequences: perplexity ") and "masked top-1" in said


def test_evaluate_counts_classes_and_answers(tmp_path, capsys, models, data, tokenizer):
    code, said, _ = call(capsys, "evaluate", models["finetune_text"], data, "--json", "--workers", 0)
    found = json.loads(said)
    model = SparseTextModel.from_pretrained(models["finetune_text"])
    with torch.no_grad():
        guesses = model(model.preprocess([sentence(n) for n in range(100, 109)])).argmax(dim=1)
    hits = sum(int(guess) == n % 3 for guess, n in zip(guesses, range(100, 109), strict=True))
    assert code == 0 and found["sequences"] == 9 and found["top1"] == pytest.approx(hits / 9)
    asked = {"id": "q", "question": "who", "answers": [{"text": "state", "answer_start": 4}]}
    (tmp_path / "squad.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "the state of war", "qas": [asked]}]}]})
    )
    options = text.Options("spans", LENGTH, tokenizer=data / "train" / TOKENIZER, layout=Layout(10))
    squad.make(tmp_path / "asked", {"": tmp_path / "squad.json"}, squad.Options(options, 4), lambda *_: None)
    code, said, _ = call(capsys, "evaluate", models["finetune_span"], tmp_path / "asked", "--json", "--workers", 0)
    answers = json.loads(said)
    answer = SparseTextModel.from_pretrained(models["finetune_span"]).answer("who", "the state of war")
    assert code == 0 and answers["predictions"] == {"q": answer.text} and answers["questions"] == 1


def test_evaluate_and_embed_refuse_rows_of_a_different_model(tmp_path, capsys, models, data):
    text_sets.make(tmp_path / "short", text_sets.texts(20), length=8)
    text_sets.make(tmp_path / "tokens", [*text_sets.texts(20, first=40)], length=LENGTH)
    out = tmp_path / "features.npy"
    for folder, part in (("short", "has length 8, the model 16"), ("tokens", "a different tokenizer")):
        for command in (["evaluate", models["mlm"], tmp_path / folder], ["embed", models["mlm"], tmp_path / folder]):
            code, _, errors = call(capsys, *command, *(["--out", out] if command[0] == "embed" else []))
            assert code == 2 and part in errors[-1], errors
    code, said, _ = call(capsys, "embed", models["mlm"], data / "val", "--out", out, "--workers", 0)
    assert code == 0 and "9 rows, 16 features of each" in said
    model = SparseTextModel.from_pretrained(models["mlm"])
    with torch.no_grad():
        wanted = model.forward_features(rows_of(data / "val"))
    assert np.allclose(np.load(out), wanted.numpy(), atol=1e-5)


def test_a_file_of_weights_becomes_an_export(tmp_path, capsys, data):
    of = spec("bert")
    module = network("mlm", of)
    weights = {name: parameter.detach() for name, parameter in module.backbone.named_parameters()}
    save_file(weights | {"output_bias": module.bias.detach()}, tmp_path / "weights.safetensors")
    sizes = [f"model.{key}={getattr(of, key)}" for key in ("length", "vocabulary", "width", "depth", "heads")]
    flags = [flag for one in [*sizes, "model.channel_hidden=32"] for flag in ("--set", one)]
    command = ["import", tmp_path / "weights.safetensors", tmp_path / "out", "--model", "bert_speeches", *flags]
    code, _, (line,) = call(capsys, *command)
    assert code == 2 and "--tokenizer FILE" in line
    code, said, errors = call(capsys, *command, "--tokenizer", data / "train" / TOKENIZER)
    assert (code, errors) == (0, []) and "a masked language model" in said
    model = SparseTextModel.from_pretrained(tmp_path / "out")
    tokens = model.preprocess(["the state"])
    with torch.no_grad():
        assert torch.allclose(model(tokens), module(tokens, torch.arange(LENGTH)[None])[0], atol=1e-6)
    wrong = [one.replace("vocabulary=340", "vocabulary=341") for one in map(str, command)]
    code, _, (line,) = call(capsys, *wrong, "--tokenizer", data / "train" / TOKENIZER)
    assert code == 2 and "text.vocabulary 340 unlike the model's 341" in line


def test_new_models_by_name(tmp_path, data):
    sizes = {"length": LENGTH, "vocabulary": VOCABULARY, "width": 16, "depth": 2, "hidden": 24}
    tokens = torch.zeros(2, LENGTH, dtype=torch.int64)
    for classes, shape in ((None, (2, LENGTH, VOCABULARY)), (3, (2, 3)), (0, (2, 16))):
        model = create_model("gmlp_text_speeches", num_classes=classes, **sizes)
        assert model(tokens).shape == shape
    with pytest.raises(UserError, match="without a tokenizer"):
        model.preprocess(["a"])
    with pytest.raises(UserError, match="exported with its tokenizer"):
        model.save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match="the tokenizer has 340 tokens, the model 4096"):
        create_model("gmlp_text_speeches", tokenizer=data / "train" / TOKENIZER)
    with pytest.raises(UserError, match="takes images, which have no tokenizer"):
        create_model("mixer_digits", tokenizer=data / "train" / TOKENIZER)
    model = create_model("gmlp_text_speeches", tokenizer=data / "train" / TOKENIZER, **sizes)
    model.save_pretrained(tmp_path / "out")
    again = create_model(pretrained=tmp_path / "out", num_classes=2)
    assert again.config.task == "classes" and torch.equal(again(tokens), torch.zeros(2, 2))
    again.save_pretrained(tmp_path / "classes")
    assert create_model(pretrained=tmp_path / "classes").classes == ("0", "1")


@pytest.mark.parametrize("kind", ["mlm", "finetune_text", "finetune_span"])
def test_a_graph_computes_the_same(tmp_path, models, kind):
    model = SparseTextModel.from_pretrained(models[kind])
    graph.write_pt2(model, tmp_path / "model.pt2")  # which compares both on batches of 1 and 3
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    tokens = model.preprocess([sentence(n) for n in range(5)])
    with torch.no_grad():
        assert torch.allclose(loaded(tokens), model(tokens), atol=1e-5)


def test_a_graph_for_onnx_runtime_has_the_tokenizer_beside_it(tmp_path, capsys, models):
    onnxruntime = pytest.importorskip("onnxruntime")
    code, said, _ = call(capsys, "export", models["mlm"], tmp_path / "out", "--format", "onnx")
    assert code == 0 and "on batches of 1 and 3 rows" in said and (tmp_path / "out" / TOKENIZER).exists()
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])
    model = SparseTextModel.from_pretrained(models["mlm"])
    tokens = model.preprocess([sentence(n) for n in range(4)])
    (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, model(tokens).numpy(), atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["special"]) == model.text.special and json.loads(told["task"]) == "masked"
