"""What the pre-flight says of hosts that are not alike."""

from dataclasses import replace

import pytest

from sparse_mlp_ds.train import preflight
from sparse_mlp_ds.train.preflight import Facts

FOUR = [
    Facts(f"node{number}", 1, 4 if number == 1 else None, "3.11.2", "torch 2.13.0", "a1", "b2", "c3", "cpu", 0, 1e9)
    for number in range(1, 5)
]


def test_alike_and_complete_is_no_problem():
    assert preflight._problems(FOUR) == []
    assert preflight._problems([replace(facts, expected_nodes=None) for facts in FOUR]) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"code": "a2"}, "code differs on node3 from 3 other hosts; bring all hosts to the same version"),
        ({"packages": "torch 2.12.0"}, "packages differs on node3"),
        ({"python": "3.10.1"}, "python differs on node3"),
        ({"config": "x"}, "config differs on node3"),
        ({"data": "x"}, "data differs on node3"),
        ({"device": "NVIDIA H100", "devices": 1}, "device differs on node3"),
        ({"compiles": True}, "compiles differs on node3 from 3 other hosts; install Triton and a C compiler"),
        ({"clock": 1e9 + 60}, "node3: its clock is +60 s off"),
        ({"ranks_here": 2}, "node3: 2 ranks were started, 1 joined"),
        ({"host": "node2"}, "4 hosts were asked for, 3 joined: node1, node2, node4"),
    ],
)
def test_one_that_differs_is_named(change, said):
    everyone = [replace(facts, **change) if facts.host == "node3" else facts for facts in FOUR]
    problems = preflight._problems(everyone)
    assert any(said in problem for problem in problems), problems


def test_the_package_that_differs_is_named():
    packages = ("torch 2.13.0, numpy 2.4.6", "torch 2.13.0, numpy 2.2.6", "torch 2.13.0, numpy missing")
    everyone = [replace(facts, packages=packages[0]) for facts in FOUR[:2]]
    everyone += [replace(facts, packages=one) for facts, one in zip(FOUR[2:], packages[1:], strict=True)]
    (problem,) = preflight._problems(everyone)
    assert problem.startswith("packages differs on node3, node4 from 2 other hosts"), "every host that is not as most"
    assert problem.endswith("(node3: numpy 2.2.6, others: numpy 2.4.6)")


def test_fewer_devices_than_ranks():
    everyone = [replace(FOUR[0], ranks_here=2, devices=1, gpu="GPU-a", expected_nodes=None)] * 2
    assert preflight._problems(everyone) == ["node1: 2 ranks but 1 visible devices; lower its slots"]


def test_ranks_that_see_one_device_each_of_their_own_are_no_problem():
    everyone = [replace(FOUR[0], ranks_here=2, devices=1, gpu=gpu, expected_nodes=None) for gpu in ("GPU-a", "GPU-b")]
    assert preflight._problems(everyone) == []
