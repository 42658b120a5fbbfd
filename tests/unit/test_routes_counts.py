"""Counts of what experts get: against a count in plain Python, for every family with experts."""

import math
from collections import Counter

import pytest
import torch

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.moe.layer import Routing
from sparse_mlp_ds.routes import weights
from sparse_mlp_ds.routes.agreement import agreement
from sparse_mlp_ds.routes.counts import BINS, TOP, count
from sparse_mlp_ds.routes.layers import layers_of
from tests.helpers.tiny_families import REPORTS, TINY

CASES = {
    "sparse_mlp": {},
    "sparse_mlp without re-represent layers": {"rerepresent": False},
    "two sparse blocks": {"sparse_blocks": 2},
    "vmoe": {},
    "vmoe with a class token": {"pool": "cls"},
    "widenet": {},
    "expert choice": {},
}
IMAGES, CLASSES, BATCH = 13, 3, 5


def build(case):
    family = {"two sparse blocks": "sparse_mlp", "expert choice": "vmoe"}.get(case, case.split()[0])
    spec = model_spec(TINY[family] | CASES[case])
    routing = Routing(priority="expert_choice") if case == "expert choice" else Routing()
    model = registry.build(spec, CLASSES, lambda *moe: registry.local_moe(*moe, routing))
    init_weights(model, seed=3)
    return model, spec


def batches():
    """13 images of 3 classes in batches of 5, of which the last two places are padding."""
    generator = torch.Generator().manual_seed(0)
    for first in range(0, IMAGES, BATCH):
        numbers = torch.arange(first, first + BATCH)
        numbers = torch.where(numbers < IMAGES, numbers, -1)
        yield torch.randn(BATCH, 3, 16, 16, generator=generator), numbers.clamp_min(0) % CLASSES, numbers


def by_hand(model, layer):
    """Yield number, label, item, the experts that got it with their weights, and its entropy."""
    for images, labels, numbers in batches():
        with torch.no_grad():
            choices, routes = model.forward_features(images)[1][layer.name].decided
        got = {}
        ends = routes.counts.cumsum(0).tolist()
        for place in range(ends[-1]):
            expert = next(number for number, end in enumerate(ends) if place < end)
            got.setdefault(int(routes.item[place]), {})[expert] = float(routes.weight[place])
        size = len(choices.logits) // len(images)
        for row, number in enumerate(numbers.tolist()):
            for item in range(layer.tokens, size if number >= 0 else 0):
                p = choices.logits[row * size + item].softmax(0).tolist()
                entropy = -sum(x * math.log(x) for x in p) / math.log(layer.experts)
                yield number, int(labels[row]), item - layer.tokens, got.get(row * size + item, {}), entropy


@pytest.fixture(scope="module", params=CASES)
def counted(request):
    model, spec = build(request.param)
    layers = layers_of(model, spec)
    return request.param, model, layers, count(model, batches(), layers, CLASSES, shown=[1, 7])


def test_layers_are_those_that_report(counted):
    case, model, layers, _ = counted
    assert [layer.name for layer in layers] == [*model(torch.zeros(1, 3, 16, 16))[1]]
    if case in REPORTS:
        assert {layer.name for layer in layers} == REPORTS[case]


def test_a_model_without_experts_has_no_layers():
    spec = model_spec(TINY["mixer"])
    assert layers_of(registry.build(spec), spec) == []


def test_every_count_is_that_of_a_count_by_hand(counted):
    _, model, layers, counts = counted
    assert int(counts.images) == IMAGES
    for place, layer in enumerate(layers):
        by_class, by_item, load, entropies = Counter(), Counter(), Counter(), {}
        for number, label, item, experts, entropy in by_hand(model, layer):
            entropies.setdefault(item, []).append(entropy)
            for expert in experts:
                by_class[label, expert] += 1
                by_item[item, expert] += 1
                load[number, expert] += 1
        assert counts.by_class[place].sum() == sum(by_class.values()) > 0
        assert all(counts.by_class[place][key] == value for key, value in by_class.items())
        assert counts.by_item[place].sum() == sum(by_item.values())
        assert all(counts.by_item[place][key] == value for key, value in by_item.items())
        sums = [sum(entropies[item]) for item in range(layer.items)]
        assert counts.entropy[place].tolist() == pytest.approx(sums, rel=1e-4)
        assert int(counts.histogram[place].sum()) == IMAGES * layer.items and len(counts.histogram[place]) == BINS
        for expert in range(layer.experts):
            items = [one[0] for one in counts.top[place][expert]]
            of_expert = sorted((n for (_, e), n in load.items() if e == expert), reverse=True)
            assert items == of_expert[:TOP]
            assert all(load[number, expert] == one for one, _, number in counts.top[place][expert])


def test_each_patch_of_the_shown_images_has_its_first_choice(counted):
    _, model, layers, counts = counted
    for place, layer in enumerate(layers):
        assert counts.of_patch[place].keys() == ({1, 7} if layer.on_grid else set())
        for number, _, item, experts, _ in by_hand(model, layer):
            if number in counts.of_patch[place]:
                first = max(experts, key=experts.get) if experts else -1
                assert counts.of_patch[place][number][item] == first


def test_agreement_is_that_of_the_tables_written_out(counted):
    case, model, layers, counts = counted
    found = agreement(counts)
    loads, firsts = [], []
    for layer in layers:
        load, first = torch.zeros(IMAGES, layer.experts, dtype=torch.float64), {}
        for number, _, item, experts, _ in by_hand(model, layer):
            for expert in experts:
                load[number, expert] += 1
            first[number, item] = max(experts, key=experts.get) if experts else -1
        loads.append(load - load.mean(dim=0))
        firsts.append(first)
    for a, row in enumerate(found.images):
        for b, value in enumerate(row):
            norm = lambda x, y: float((x.T @ y).norm())  # noqa: E731
            if case == "expert choice":  # every image gives every expert as many items
                assert value is None
            else:
                expected = norm(loads[a], loads[b]) ** 2 / (norm(loads[a], loads[a]) * norm(loads[b], loads[b]))
                assert value == pytest.approx(expected, abs=1e-5)
    for a, row in enumerate(found.items):
        for b, value in enumerate(row):
            assert (value is None) == (not layers[a].same_items(layers[b]))
            if value is not None and a != b:
                assert value == pytest.approx(information(firsts[a], firsts[b]), abs=1e-5)


def information(a, b):
    """2 I / (H + H) of two dictionaries with the same keys, without keys of -1."""
    pairs = [(a[key], b[key]) for key in a if a[key] >= 0 and b[key] >= 0]
    entropy = lambda values: -sum(n / len(pairs) * math.log(n / len(pairs)) for n in Counter(values).values())  # noqa: E731
    of_a, of_b = entropy([x for x, _ in pairs]), entropy([y for _, y in pairs])
    return 2 * (of_a + of_b - entropy(pairs)) / (of_a + of_b)


def test_a_receptive_field_is_made_of_the_re_represent_layers_rows():
    model, spec = build("sparse_mlp")
    layers = layers_of(model, spec)
    counts = count(model, batches(), layers, CLASSES, shown=())
    experts = weights.of_experts(model, layers)
    moe_s, moe_c = layers
    matrix = model.blocks[1].rerepresent1.tokens.weight.detach()  # [S1, S]
    fields = weights.field(model, moe_c, counts.by_item[1], {})
    for expert, field in enumerate(fields):
        expected = torch.zeros(16)
        for item in range(moe_c.items):
            expected += counts.by_item[1][item, expert].float() * matrix[item].abs()
        assert field == pytest.approx((expected / expected.mean()).tolist(), rel=1e-3)
    hidden = model.blocks[1].moe_s.experts["2"].fc1.weight.detach() @ matrix
    fields = weights.field(model, moe_s, counts.by_item[0], {n: one[0] for n, one in experts["1.moe_s"].items()})
    expected = hidden.square().mean(0).sqrt()
    assert fields[2] == pytest.approx((expected / expected.mean()).tolist(), rel=1e-3)
    shown = {one.name: one.units for one in weights.token_mixing(model, experts)}
    assert shown.keys() == {"block 0", *(f"1.moe_s expert {n}" for n in range(4))}
    best = hidden[hidden.norm(dim=1).argmax()].tolist()
    assert shown["1.moe_s expert 2"][0] == pytest.approx(best, rel=1e-3)


def test_without_re_represent_layers_patches_are_the_images():
    model, spec = build("sparse_mlp without re-represent layers")
    layers = layers_of(model, spec)
    counts = count(model, batches(), layers, CLASSES, shown=())
    (place,) = [n for n, layer in enumerate(layers) if layer.kind == "moe_c"]
    share = counts.by_item[place].T
    fields = weights.field(model, layers[place], counts.by_item[place], {})
    for field, expected in zip(fields, share / share.mean(dim=1, keepdim=True), strict=True):
        assert field == pytest.approx(expected.tolist(), rel=1e-3)
