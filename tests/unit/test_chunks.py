"""`moe_s.chunk`: several channels as one item of MoE_S, which one expert mixes together."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.cost import cost
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.sparse_mlp import ChunkMlp
from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.layer import Routing
from sparse_mlp_ds.routes.layers import layers_of
from sparse_mlp_ds.train.step_collectives import mixtures
from tests.helpers.tiny_families import TEXT, batch, make

CHUNK, TOKENS, CHANNELS = 4, 10, 24
SPEC = MoESpec(experts=3, hidden=7, top_k=2, chunk=CHUNK)


@pytest.fixture
def layer():
    made = registry.local_moe("moe_s", CHUNK * TOKENS, SPEC, 0.0, Routing(group_images=1, capacity_factor=None))
    init_weights(made, 0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_hand(layer, items):
    """What the layer should return for items [N, c T]: every channel of a chunk goes through the chunk's experts."""
    weight, expert = linear(items, layer.router.weight).softmax(dim=-1).topk(SPEC.top_k, dim=-1)
    rows = []
    for item, gates, chosen in zip(items, weight, expert, strict=True):
        channels = item.view(CHUNK, TOKENS)
        row = torch.zeros_like(channels)
        for gate, number in zip(gates, chosen.tolist(), strict=True):
            mlp = layer.experts[str(number)]
            row = row + gate * mlp.fc2(gelu(mlp.fc1(channels)))
        rows.append(row.flatten())
    return torch.stack(rows)


def test_a_chunk_goes_whole_to_its_experts(layer):
    items = torch.randn(2, CHANNELS // CHUNK, CHUNK * TOKENS)
    expected = by_hand(layer, items.flatten(0, 1)).view_as(items)
    torch.testing.assert_close(layer(items)[0], expected)
    keys = rng.sample_keys(0, torch.arange(2), "test")
    assert layer.experts["0"].fc1.weight.shape == (7, TOKENS) and layer.router.weight.shape == (3, CHUNK * TOKENS)
    layer.router.noise = 0
    torch.testing.assert_close(layer(items, keys)[0], expected)


def test_the_block_cuts_neighbouring_channels_into_chunks():
    block, (tokens, _) = make("gmlp_sparse").blocks[2], batch(family="gmlp_sparse")
    seen = []
    block.moe_s.register_forward_hook(lambda module, arguments, result: seen.append((arguments[0], result[0])))
    x = torch.randn(2, 16, 24)
    block(x, None)
    items, mixed = seen[0]
    normed = block.norm1(x)
    assert items.shape == (2, 6, 64)
    torch.testing.assert_close(items[1, 2].view(4, 16), normed[1, :, 8:12].T)
    after = x + mixed.view(2, 24, 16).transpose(1, 2)
    torch.testing.assert_close(block(x, None)[0], after + block.moe_c(block.norm2(after))[0])
    assert make("gmlp_sparse").forward_features(tokens)[1]["2.moe_s"].decided[0].expert.shape == (8 * 6, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_experts_run_in_turn_as_one_by_one(dropout):
    experts = [ChunkMlp(TOKENS, 7, dropout) for _ in range(3)]
    for number, expert in enumerate(experts):
        init_weights(expert, number)
        expert.dropout1.stream.fill_(number)
        expert.dropout2.stream.fill_(10 + number)
    rows, sizes, keys = torch.randn(9, CHUNK * TOKENS), [4, 0, 5], rng.drawn_keys(9, torch.device("cpu"))
    parts = zip(experts, rows.split(sizes), keys.split(sizes), strict=True)
    expected = torch.cat([expert(part, part_keys) for expert, part, part_keys in parts])
    torch.testing.assert_close(ChunkMlp.in_turn(experts, rows, sizes, keys), expected)
    assert bool(dropout) == bool((expected == 0).any())


def test_segments_of_repeated_rows():
    counts, rows = torch.tensor([2, 0, 3]), 7  # two rows are nobody's
    repeated, expected = grouped.segments(counts, rows).repeated(3), grouped.segments(counts * 3, rows * 3)
    for name in ("ends", "expert", "used", "empty"):
        assert torch.equal(getattr(repeated, name), getattr(expected, name)), name
        assert getattr(repeated, name).dtype == getattr(expected, name).dtype, name


def test_experts_run_all_at_once_as_in_turn(monkeypatch):
    monkeypatch.setattr(grouped, "applies", lambda rows, experts: grouped.able(experts))
    moe_s = {"experts": 4, "hidden": 24, "chunk": 4}
    model, (tokens, keys) = make("gmlp_sparse", moe_s=moe_s, drop_path=0.0).bfloat16(), batch(family="gmlp_sparse")
    at_once = model.forward_features(tokens, keys)[0]
    monkeypatch.setattr(grouped, "applies", lambda rows, experts: False)
    torch.testing.assert_close(at_once, model.forward_features(tokens, keys)[0], rtol=0.02, atol=0.02)


def test_images_have_chunks_too():
    chunked = model_spec({"name": "sparse_mlp_digits", "moe_s": {"chunk": 8}})
    model = registry.build(chunked)
    init_weights(model, 0)
    features, reports = model.forward_features(*batch())
    assert features.isfinite().all()
    assert reports["3.moe_s"].sums[-3] == 8 * 48 // 8, "six items for each of eight images"
    plain = cost(registry.preset("sparse_mlp_digits"))
    assert cost(chunked).params - plain.params == 4 * 32 * 7, "a longer row for each expert in the router"
    assert cost(chunked).macs == plain.macs


def test_what_is_counted_of_the_layer_knows_chunks():
    spec = model_spec(TEXT["gmlp_sparse"])
    (layer, _), (mixture, of_tokens) = layers_of(registry.build(spec), spec), mixtures(spec)
    assert (layer.items, layer.on_grid) == (24 // 4, False)
    assert (mixture.kind, mixture.items, mixture.width, mixture.experts) == ("moe_s", 6, 64, 4)
    assert (of_tokens.kind, of_tokens.items, of_tokens.width) == ("moe_c", 16, 24)
