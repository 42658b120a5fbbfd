"""What a step asks of a GPU: no change may raise it unnoticed. counts.json says how often each line of source asks."""

import json

import pytest

from tests.gpu_emulated import configurations

RECORDED = json.loads(configurations.FILE.read_text())
LIMITS = {
    "Sparse-B, MoCo v3": {"launches": 3000, "synchronisations": 1, "collectives": 9},
    "Sparse-B, fine-tuning as DeiT": {"launches": 3000, "synchronisations": 1, "collectives": 9},
    "text, masked tokens": {"synchronisations": 1},
    "text, classes": {"synchronisations": 1},
    "Sparse-B with 64 experts, forward and backward": {"launches": 1400, "synchronisations": 0},
}
"""What the project has set itself, beside that nothing rises."""
LONG = pytest.mark.long
pytestmark = pytest.mark.timeout(600)  # half a minute each on idle cores


def check(run, workplace):
    result, found = run(workplace)
    assert result.code == 0, result.output
    if configurations.versions() != RECORDED["versions"]:
        pytest.skip(f"counts were recorded with {RECORDED['versions']}, here are {configurations.versions()}")
    assert found
    for name, counted in found.items():
        risen = list(configurations.risen(RECORDED["configurations"][name], counted))
        assert not risen, f"{name} asks more of a GPU than before:\n" + "\n".join(risen)


def test_digits(workplace):
    """All stages, the probe included, with mixup, CutMix, RandAugment, erasing and a weight average."""
    check(configurations.digits, workplace)


@LONG
def test_digits_on_two_ranks(workplace):
    check(configurations.digits_on_two_ranks, workplace)


@LONG
def test_sparse_b(workplace):
    check(configurations.sparse_b, workplace)


def test_text(workplace):
    check(configurations.text, workplace)


def test_many_experts(workplace):
    check(configurations.many_experts, workplace)


@pytest.mark.parametrize("name", LIMITS)
def test_the_record_keeps_within_limits(name):
    counted = RECORDED["configurations"][name]
    for kind, limit in LIMITS[name].items():
        assert sum(counted[kind].values()) <= limit, kind


def test_a_place_whose_count_rises_is_named():
    recorded = {"launches": {"a.py: f: x": 3, "b.py: g: y": 2}, "synchronisations": {"a.py: f: z": 1}}
    more = {"launches": {"a.py: f: x": 3, "b.py: g: y": 3, "c.py: h: w": 1}, "synchronisations": {}}
    assert list(configurations.risen(recorded, more)) == [
        "launches: 5 -> 7",
        "    2 -> 3  b.py: g: y",
        "    0 -> 1  c.py: h: w",
    ]
    moved = {"launches": {"a.py: f: renamed": 3, "b.py: g: y": 2}, "synchronisations": {"a.py: f: z": 1}}
    assert list(configurations.risen(recorded, moved)) == []
