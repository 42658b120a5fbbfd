"""How sure a difference between settings is: intervals over seeds and over images, and which images were right."""

import json

import numpy as np
import pytest
import scipy.stats

from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.sweep import intervals


def test_the_interval_over_seeds_is_that_of_the_paired_t_test():
    low, high = intervals.over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)  # t of 2 freedoms
    a, b = np.random.default_rng(3).normal(size=(2, 7))
    expected = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert intervals.over_seeds(list(a - b)) == pytest.approx((expected.low, expected.high))
    assert intervals.over_seeds([1.0]) is None


def test_the_interval_over_images_is_that_of_a_paired_bootstrap():
    draw = np.random.default_rng(4)
    first, other = draw.random((2, 3, 900)) < np.array([0.5, 0.56])[:, None, None]
    pairs = other.astype(int) - first
    found = intervals.over_images(pairs)
    expected = scipy.stats.bootstrap(
        (pairs.mean(axis=0),), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=1.5e-3)
    assert found == intervals.over_images(pairs), "the same results are the same table"
    one = intervals.over_images(pairs[:1])
    assert intervals.over_images(np.repeat(pairs[:1], 3, axis=0)) == one, "equal networks are no further evidence"
    assert one[1] - one[0] > 1.5 * (found[1] - found[0])


def test_significant_is_what_both_intervals_keep_away_from_0():
    better = {0: 0.51, 1: 0.52, 2: 0.53}, {0: 0.61, 1: 0.63, 2: 0.62}
    assert intervals.difference(*better).is_significant
    worse = intervals.difference(*better[::-1])
    assert worse.is_significant and worse.mean == pytest.approx(-0.1)
    one_seed = intervals.difference({0: 0.1}, {0: 0.9, 1: 0.9})
    assert not one_seed.is_significant and list(one_seed.by_seed) == [0]
    few = [{seed: np.array([False, True, False]) for seed in range(3)}, {seed: np.ones(3, bool) for seed in range(3)}]
    few[1] = {seed: np.array([True, True, False]) for seed in range(3)}
    difference = intervals.difference(*better, tuple(few))
    assert difference.over_images[0] == 0 and not difference.is_significant, "three images say nothing"
    assert intervals.difference(*better, (few[0], {0: few[1][0]})).over_images is None
    assert intervals.difference({0: 0.1}, {1: 0.1}) is None


@pytest.mark.parametrize("images", [1, 8, 9, 1000])
def test_hits_are_packed_without_loss(images):
    marks = np.random.default_rng(images).integers(0, 3, images)
    record = json.loads(json.dumps(image_hits.packed(marks, "x")))
    assert image_hits.unpacked(record).tolist() == marks.tolist()
    for damaged in ({"images": images + 8}, {"right": "?"}, {"left_out": [images]}, {"right": None}):
        with pytest.raises(ValueError):
            image_hits.unpacked(record | damaged)
