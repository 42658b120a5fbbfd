"""Signs of collapse: held against their definitions, image by image, and at both ends of their scales."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparse_mlp_ds.ssl import collapse

IMAGES, WIDTH, DIM = 48, 24, 8


def vectors(seed, size):
    return torch.randn(2, IMAGES, size, generator=torch.Generator().manual_seed(seed))


def figures_of(features, queries, keys):
    return collapse.figures(collapse.sums(features, queries, keys), features.shape[-1], keys.shape[-1])


def test_figures_are_those_of_their_definitions():
    features, queries = vectors(0, WIDTH) + 0.5, vectors(1, DIM)
    keys = queries.flip(0) + 0.7 * vectors(2, DIM)
    found = figures_of(features, queries, keys)

    unit = F.normalize(features.double(), dim=-1).flatten(0, 1)
    assert found["feature_std"] == pytest.approx(float(unit.std(dim=0, unbiased=False).mean()) * WIDTH**0.5, rel=1e-4)
    singular = torch.linalg.svdvals(F.normalize(keys.double(), dim=-1).flatten(0, 1))
    shares = singular / singular.sum()
    assert found["effective_rank"] == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-4)
    own, others = [], []
    for view in range(2):
        for image in range(IMAGES):
            cosines = F.cosine_similarity(queries[view, image][None], keys[1 - view])
            own.append(float(cosines[image]))
            others += [float(value) for number, value in enumerate(cosines) if number != image]
    assert found["positive_similarity"] == pytest.approx(sum(own) / len(own), rel=1e-4)
    assert found["negative_similarity"] == pytest.approx(sum(others) / len(others), abs=1e-6)
    assert found["positive_similarity"] > 0.5 > found["negative_similarity"]


def test_parts_of_a_batch_add_up():
    whole = (vectors(0, WIDTH), vectors(1, DIM), vectors(2, DIM))
    parts = [tuple(x[:, rows] for x in whole) for rows in (slice(0, 10), slice(10, IMAGES))]
    added = sum(collapse.sums(*part) for part in parts)
    torch.testing.assert_close(added, collapse.sums(*whole), rtol=1e-4, atol=1e-4)


def test_both_ends_of_the_scales():
    spread = figures_of(vectors(0, WIDTH), vectors(1, DIM), vectors(2, DIM))
    assert 0.95 < spread["feature_std"] < 1 and 0.9 * DIM < spread["effective_rank"] < DIM
    same = [x[:, :1].expand(-1, IMAGES, -1) * torch.ones(2, 1, 1) for x in (vectors(0, WIDTH), vectors(1, DIM))]
    same = [x[:1].expand(2, -1, -1) for x in same]
    collapsed = figures_of(same[0], same[1], same[1])
    assert collapsed["feature_std"] < 0.01 and collapsed["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert collapsed["positive_similarity"] == pytest.approx(collapsed["negative_similarity"], abs=1e-5)
    few = vectors(2, DIM) * (torch.arange(DIM) < 3)
    assert 2.5 < figures_of(vectors(0, WIDTH), vectors(1, DIM), few)["effective_rank"] <= 3.001


def test_what_is_no_number_stays_none():
    nothing = torch.zeros(2, IMAGES, DIM)
    assert figures_of(vectors(0, WIDTH), nothing, nothing)["effective_rank"] == 0, "batch norm of equal features"
    broken = figures_of(vectors(0, WIDTH), vectors(1, DIM), torch.full((2, IMAGES, DIM), math.nan))
    assert math.isnan(broken["effective_rank"]) and math.isnan(broken["positive_similarity"])
    one = [x[:, :1] for x in (vectors(0, WIDTH), vectors(1, DIM), vectors(2, DIM))]
    assert math.isnan(figures_of(*one)["negative_similarity"]), "there is no other image"
