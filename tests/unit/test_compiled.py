"""Compiled blocks are the blocks they were, in few graphs without breaks; and what a host lacks that cannot compile."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.train import compiled
from tests.helpers.tiny_families import batch, make

GRAPHS = {
    "mixer": 3, "gmlp": 3, "amlp": 3, "resmlp": 3, "vit": 3, "widenet": 3, "sparse_mlp": 4, "vmoe": 5,
}  # fmt: skip
"""Family -> graphs of training and evaluation. A kind of block has one for evaluation and one for training, and the
first block, which stochastic depth never drops, one of its own for training."""
QUICK = ("mixer", "sparse_mlp", "vmoe")
"""Families that `make test` tries, too."""
pytestmark = pytest.mark.timeout(600)  # a few seconds each on idle cores
GROUPED = {"sparse_mlp": {"sparse_width": 24}}
"""Widths of whole units of 16 bytes, where the tiny model has others."""


@pytest.fixture(autouse=True)
def as_without_kernels(monkeypatch):
    """Graphs are made as for a GPU, and then computed operation by operation."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def all_at_once(monkeypatch):
    """Experts run in grouped products, as on a GPU."""
    monkeypatch.setattr(grouped, "applies", lambda rows, experts: grouped.able(experts))


def made(family, kind, **overrides):
    """A model whose routers are float32, as in training."""
    model = make(family, drop_path=0.2, **overrides).to(kind)
    for module in model.modules():
        if isinstance(module, Router):
            module.float()
    return model


def passes(model, first=0):
    """Features in training and in evaluation, gradients, balance losses and what layers report."""
    model.zero_grad(set_to_none=False)
    if model.stem_name == "token_embed":
        inputs, keys = batch(8, first=first, family="gmlp_text")
    else:
        images, keys = batch(8, size=model.patch_embed.proj.kernel_size[0] * 4, first=first)
        inputs = images.to(model.patch_embed.proj.weight.dtype)
    features, reports = model.forward_features(inputs, keys)
    balance = sum((report.balance for report in reports.values()), torch.zeros(()))
    (features.float().square().sum() + balance).backward()
    with torch.no_grad():
        evaluated = model.forward_features(inputs)[0]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [features.detach(), evaluated, balance.detach(), *gradients], [r.sums for r in reports.values()]


def same(a, b, tolerance):
    for one, other in zip(a[0], b[0], strict=True):
        assert one.isfinite().all()
        assert float((one.float() - other.float()).norm()) <= tolerance * float(other.float().norm()) + 1e-7
    for one, other in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in GRAPHS]
)
def test_in_bf16_as_on_a_gpu_each_kind_of_block_is_one_graph(family, all_at_once):
    model = made(family, torch.bfloat16, **GROUPED.get(family, {}))
    expected, names = passes(model), [name for name, _ in model.named_parameters()]
    stored = list(model.state_dict())
    compiled.compile_blocks([model])
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == stored
    same(passes(model), expected, tolerance=0.01)
    assert counters["stats"]["unique_graphs"] == GRAPHS[family]
    passes(model, first=8)
    assert counters["stats"]["unique_graphs"] == GRAPHS[family], "compiled again for new images"
    assert not counters["graph_break"]


def test_grouped_products_decide_in_a_graph_too_how_their_rows_lie(all_at_once, monkeypatch):
    """torch refuses, on a GPU, rows whose columns lie one behind the other, and would lay them so."""
    graphs = []

    def kept(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    monkeypatch.setattr(compiled, "BACKEND", aot_autograd(fw_compiler=kept, bw_compiler=kept))
    model = made("sparse_mlp", torch.bfloat16, **GROUPED["sparse_mlp"])
    compiled.compile_blocks([model])
    passes(model)
    with_experts = [ops for ops in graphs if any("sparse_mlp_ds.grouped_times" in op for op in ops)]
    assert len(with_experts) >= 2 and any("sparse_mlp_ds.grouped_outer" in op for ops in graphs for op in ops)
    assert not any("_grouped_mm" in op for ops in graphs for op in ops)


@pytest.mark.parametrize("family", ["mixer", "gmlp", "amlp_text"])
def test_in_float32_with_dropout_and_blocks_that_are_computed_again(family):
    model = made(family, torch.float32, dropout=0.1, checkpoint_blocks=True)
    expected = passes(model)
    compiled.compile_blocks([model])
    same(passes(model), expected, tolerance=1e-5)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("family", "whole", "parts"),
    [("sparse_mlp", {"blocks.0"}, {"blocks.1.rerepresent1", "blocks.1.rerepresent2"}), ("widenet", set(), None)],
)
def test_experts_in_a_loop_stay_outside_of_graphs(family, whole, parts):
    """As in float32, on GPUs before Hopper, with dropout in experts, and where they are spread over ranks."""
    model = made(family, torch.float32)
    expected = passes(model)
    compiled.compile_blocks([model])
    found = {name for name, module in model.named_modules() if module._compiled_call_impl is not None}
    assert found == whole | (parts or {"blocks.0.attention"})
    same(passes(model), expected, tolerance=1e-5)
    assert not counters["graph_break"]


def test_a_layer_waits_unless_all_experts_are_here_without_keys(all_at_once):
    (block,) = [block for block in made("sparse_mlp", torch.bfloat16).blocks if hasattr(block, "moe_s")]
    layer = block.moe_s
    assert layer.never_waits()
    layer.keyed_experts = True
    assert not layer.never_waits()
    layer.keyed_experts = False
    layer.experts.pop("0")
    assert not layer.never_waits()
