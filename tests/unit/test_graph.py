"""Exports as graphs: what ONNX Runtime and torch.export compute is what the model computes, on any number of images."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.hub import SparseVisionModel, graph
from sparse_mlp_ds.hub import config as hub_config
from sparse_mlp_ds.hub.config import ModelConfig, Origin
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe import dense
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from tests.helpers.made_checkpoints import call, finished, save
from tests.helpers.tiny_families import TINY
from tests.helpers.weight_files import SPARSE, make

pytestmark = pytest.mark.timeout(600)  # a family takes half a minute of an idle core
QUICK = ("sparse_mlp",)
"""What `make test` tries, too."""
each_family = pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in TINY]
)
CAPACITIES = [
    Routing(),
    Routing(renormalize=True),
    Routing(evaluation_capacity=0.6),
    Routing(evaluation_capacity=0.6, priority="importance", capacity_multiple=2),
    Routing(evaluation_capacity=0.3, priority="importance", renormalize=True),
    Routing(priority="expert_choice", capacity_factor=0.7),
]


def of_family(family, classes=("ant", "bee", "cat"), **moe):
    """A model of a tiny family, all of whose tensors are random."""
    config = ModelConfig(
        name="tiny",
        spec=model_spec(TINY[family] | {"checkpoint_blocks": family == "sparse_mlp"}),
        moe=MoE(**moe),
        classes=classes,
        data=Pixels(),
        origin=Origin(version="0", weights="online"),
    )
    model, generator = SparseVisionModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def images(model, number, seed=1):
    side = model.config.spec.image_size
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run_all(model):
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.runs_all = True


def in_onnx_runtime(path, batch):
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": batch.numpy()})[0])


@torch.no_grad()
def test_all_experts_on_all_items_give_the_demos_model_bit_for_bit():
    model = registry.build(registry.preset("sparse_mlp_digits"), 10)
    init_weights(model, seed=0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    batch = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = model(batch)[0]
    run_all(model)
    assert torch.equal(model(batch)[0], expected)
    assert expected.std() > 1, "a head of zeros would be equal whatever the experts do"


@torch.no_grad()
@pytest.mark.parametrize("routing", CAPACITIES)
def test_all_experts_on_all_items_drop_what_the_layer_drops(routing):
    model = of_family("sparse_mlp")
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.routing = replace(layer.routing, **vars(routing))
    batch = images(model, 7)
    expected, reports = model.backbone(batch)
    run_all(model)
    found, dense_reports = model.backbone(batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, report in reports.items():
        assert torch.equal(dense_reports[name].sums, report.sums)
    dropped = sum(float(report.sums[-2]) for report in reports.values())
    assert (dropped > 0) == (routing.evaluation_capacity is not None or routing.priority == "expert_choice")


@torch.no_grad()
def test_experts_that_do_not_get_an_item_cannot_spoil_it():
    model = of_family("sparse_mlp")
    layer = model.backbone.blocks[1].moe_c
    x = torch.randn(2, 5, 20)
    choices = layer.router(x, None)
    gate = dense.items_choose(choices, 5, None, by_weight=False)
    unused = int((gate.sum(dim=0)).argmin())
    gate[:, unused] = 0
    before = dense.mix(x.flatten(0, 1), layer.experts.values(), gate)
    layer.experts[str(unused)].fc2.bias.fill_(torch.inf)
    assert torch.equal(dense.mix(x.flatten(0, 1), layer.experts.values(), gate), before)


@each_family
@torch.no_grad()
def test_graphs_of_every_family_compute_what_the_model_computes(family, tmp_path):
    model = of_family(family)
    path = tmp_path / "model.onnx"
    graph.write_onnx(model, path)
    program = graph.program(model).module()
    for number in (1, 2, 6):
        batch = images(model, number)
        for found in (in_onnx_runtime(path, batch), program(batch)):
            torch.testing.assert_close(found, model(batch), rtol=1e-5, atol=1e-5)
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    assert not any(layer.runs_all for layer in layers), "the model itself is as it was"
    assert model.backbone.checkpoint_blocks == (family == "sparse_mlp")


@pytest.mark.long
def test_expert_choice_is_exported_too(tmp_path):
    model = of_family("sparse_mlp", priority="expert_choice")
    graph.write_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        batch = images(model, 4)
        torch.testing.assert_close(in_onnx_runtime(tmp_path / "model.onnx", batch), model(batch), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("family", "capacity"), [("sparse_mlp", None), ("vmoe", 0.5)])
def test_a_model_compiles_for_inference_without_a_break(family, capacity):
    made = of_family(family)
    model = SparseVisionModel.from_weights(made.config, dict(made.backbone.named_parameters()), capacity)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for number in (4, 1, 3):
        batch = images(model, number)
        assert torch.equal(compiled(batch), model(batch))


def test_the_command_writes_onnx_that_says_how_to_use_it(tmp_path, capsys):
    model, out = make(SPARSE), tmp_path / "out"
    code, said, errors = call(capsys, "export", save(tmp_path, param=model), out, "--format", "onnx")
    assert (code, errors) == (0, [])
    assert said.count("\n") == 2, "the exporter is silent"
    assert "model.onnx was compared with the model" in said and "weights of stage finetune at step 4" in said
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.onnx"]
    session = onnxruntime.InferenceSession(out / "model.onnx")
    found = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert found["classes"] == ["ant", "bee", "cat", "dog", "elk"]
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert (found["image_size"], found["crop_fraction"]) == (16, 1.0)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("images", "tensor(float)", [3, 16, 16])
    assert (given.name, given.shape[1:]) == ("logits", [5])
    assert "onnxruntime.InferenceSession" in (out / "README.md").read_text()
    assert hub_config.read(out / "config.json").spec == SPARSE
    code, _, (line,) = call(capsys, "predict", out, tmp_path / "a.png")
    assert code == 2 and "export with --format safetensors" in line


def test_pt2_runs_without_this_package_and_replaces_an_earlier_export(tmp_path, capsys):
    model, out = make(SPARSE), tmp_path / "out"
    path = save(tmp_path, param=model)
    assert call(capsys, "export", path, tmp_path / "weights")[0] == 0
    for source in (path, tmp_path / "weights"):  # an export can be turned into a graph, too
        code, _, errors = call(capsys, "export", source, out, "--format", "pt2")
        assert (code, errors) == (0, [])
        assert sorted(file.name for file in out.iterdir()) == ["README.md", "config.json", "model.pt2"]
    batch = torch.randn(3, 3, 16, 16)
    np.save(tmp_path / "batch.npy", batch.numpy())
    program = """
import numpy, sys, torch
extra = {"config.json": ""}
graph = torch.export.load("out/model.pt2", extra_files=extra).module()
numpy.save("found.npy", graph(torch.from_numpy(numpy.load("batch.npy"))).detach().numpy())
assert "sparse_mlp_ds" in extra["config.json"] and "sparse_mlp_ds" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        found = torch.from_numpy(np.load(tmp_path / "found.npy"))
        torch.testing.assert_close(found, model(batch)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_model_without_a_head_gives_features(tmp_path, capsys):
    model = registry.build(SPARSE)
    init_weights(model, seed=0)
    path = save(tmp_path, param=model, progress=finished("pretrain"))
    assert call(capsys, "export", path, tmp_path / "out", "--format", "onnx")[0] == 0
    (output,) = onnxruntime.InferenceSession(tmp_path / "out/model.onnx").get_outputs()
    assert (output.name, output.shape[1:]) == ("features", [SPARSE.width])


def test_a_graph_that_computes_something_different_is_not_written(tmp_path, capsys, monkeypatch):
    path, out = save(tmp_path), tmp_path / "out"
    assert call(capsys, "export", path, out)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    right = dense.items_choose
    monkeypatch.setattr(dense, "items_choose", lambda *arguments: 1.01 * right(*arguments))
    code, _, (line,) = call(capsys, "export", path, out, "--format", "onnx")
    assert code == 1 and "model.onnx: its outputs differ from the model's" in line
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "step_4"]


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_its_name_is_said(name, tmp_path, capsys, monkeypatch):
    find = graph.importlib.util.find_spec
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda one: None if one == name else find(one))
    code, _, (line,) = call(capsys, "export", save(tmp_path), tmp_path / "out", "--format", "onnx")
    assert code == 2 and line.endswith(f'{name} is not installed; `pip install "sparse_mlp_ds[export]"`')
    assert not (tmp_path / "out").exists()


def test_a_graph_has_one_number_format(tmp_path, capsys):
    code, _, (line,) = call(capsys, "export", save(tmp_path), tmp_path / "out", "--format=pt2", "--dtype=bf16")
    assert code == 2 and "a graph is of fp32" in line
