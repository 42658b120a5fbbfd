"""What RandAugment's policies and AutoAugment draw; tests/references has what the drawn operations do."""

import pytest
import torch
from scipy import stats

from sparse_mlp_ds import rng
from sparse_mlp_ds.data import auto_augment, rand_augment
from sparse_mlp_ds.data.config import RandAugment, View
from sparse_mlp_ds.data.image_operations import NUMBERS

COUNT, HEIGHT, WIDTH = 6000, 3, 5
NAMES = {number: name for name, number in NUMBERS.items()}


@pytest.fixture
def seen(monkeypatch):
    """The changes that a policy hands over, one item for each operation in a row."""
    found = []
    for module in (rand_augment, auto_augment):
        monkeypatch.setattr(module, "apply", lambda levels, changes, style: (found.append(changes), levels)[1])
    return found


def images_and_keys():
    return torch.zeros(COUNT, 3, HEIGHT, WIDTH), rng.sample_keys(0, torch.arange(COUNT), "view 0")


def counts(changes):
    numbers = changes.operation.tolist()
    return {NAMES[number]: numbers.count(number) for number in set(numbers)}


def amounts(changes, name):
    return changes.amount[changes.operation == NUMBERS[name]]


def draw(policy, **options):
    images, keys = images_and_keys()
    rand_augment.rand_augment(images, RandAugment(policy=policy, **options), keys)


def test_deit_applies_each_of_15_operations_half_the_time(seen):
    draw("deit", ops=2, magnitude=9)
    assert len(seen) == 2
    for changes in seen:
        found = counts(changes)
        assert stats.binomtest(found.pop("identity"), COUNT, 0.5).pvalue > 0.001
        assert len(found) == 15 and stats.chisquare(list(found.values())).pvalue > 0.001
    first, second = (changes.operation for changes in seen)
    both = ((first > 0) & (second > 0)).sum().item()
    assert stats.binomtest(both, COUNT, 0.25).pvalue > 0.001, "each operation is applied or not by itself"


def test_deit_draws_a_magnitude_for_each_operation(seen):
    draw("deit", ops=6, magnitude=9)
    degrees = torch.cat([amounts(changes, "rotate") for changes in seen])
    assert stats.binomtest((degrees > 0).sum().item(), len(degrees), 0.5).pvalue > 0.001
    magnitude = degrees.abs().double() / 3
    assert magnitude.max() <= 10 + 1e-6
    at_the_top = (magnitude > 10 - 1e-6).sum().item()
    assert stats.binomtest(at_the_top, len(degrees), stats.norm.sf(2)).pvalue > 0.001, "clipped to 10"
    inside = magnitude[magnitude < 10 - 1e-6].numpy()
    assert stats.kstest(inside, stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 0.001
    bits = torch.cat([amounts(changes, "posterize") for changes in seen])
    assert set(bits.tolist()) == {0, 1}, "none are left from magnitude 10 on"


@pytest.mark.parametrize("magnitude, wanted", [(10, (1.9, 0, 4, 40, 110, 100)), (15, (2.8, 128, 6, 60, 165, 150))])
def test_big_vision_applies_one_of_16_operations_upwards_in_pixels(seen, magnitude, wanted):
    draw("big_vision", ops=1, magnitude=magnitude)
    (changes,) = seen
    found = counts(changes)
    assert len(found) == 16 and stats.chisquare(list(found.values())).pvalue > 0.001
    names = ("color", "solarize", "posterize", "cutout", "solarize add", "translate y")
    assert [amounts(changes, name).abs().unique().tolist() for name in names] == [[pytest.approx(w)] for w in wanted]
    assert len(set(amounts(changes, "translate y").tolist())) == 2
    rows, columns = changes.centre.unbind(1)
    for places, side in ((rows, HEIGHT), (columns, WIDTH)):
        often = torch.bincount(places, minlength=side)
        assert len(often) == side and stats.chisquare(often.tolist()).pvalue > 0.001


@pytest.mark.parametrize("policy", ["original", "v0"])
def test_auto_augment_draws_pairs_and_applies_each_operation_as_often_as_its_table_says(seen, policy):
    images, keys = images_and_keys()
    auto_augment.auto_augment(images, policy, keys)
    pairs = auto_augment.POLICIES[policy]
    for position, changes in enumerate(seen):
        found, expected = counts(changes), dict.fromkeys(NUMBERS, 0.0)
        for pair in pairs:
            name, p, _ = pair[position]
            expected[name] += p * COUNT / len(pairs)
            expected["identity"] += (1 - p) * COUNT / len(pairs)
        expected = {name: often for name, often in expected.items() if often}
        assert found.keys() == expected.keys()
        assert stats.chisquare([found[name] for name in expected], list(expected.values())).pvalue > 0.001
    first, second = (changes.operation.tolist() for changes in seen)
    drawn = {(NAMES[a], NAMES[b]) for a, b in zip(first, second, strict=True) if a and b}
    assert drawn == {(a[0], b[0]) for a, b in pairs if a[1] and b[1]}


def test_the_two_are_alternatives():
    with pytest.raises(ValueError, match="auto_augment and rand_augment are alternatives"):
        View(rand_augment=RandAugment(), auto_augment="v0")
