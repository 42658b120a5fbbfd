"""From what hosts say of themselves to problems and warnings: cases as tables."""

from dataclasses import replace

import pytest

from sparse_mlp_ds.doctor import findings
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.facts import ABSENT, HostFacts
from sparse_mlp_ds.doctor.hostfile import Host

GIB = 2**30
ONE = HostFacts(
    host="node1", python="3.11.2", packages="torch 2.13.0, numpy 2.4.6", extras="mpi4py 4.1.2, wandb missing",
    code="a1", files={"moe.json": "f1"}, device="cpu", devices=0, driver="", blind=False, torch_error="",
    torch_seconds=None, cores=8, shared_memory=4 * GIB, disk=100 * GIB, writable=True, open_files=65536,
    port_taken=False, marker_seen=True, caller="10.0.0.1", call_error="", seconds=0.3, clock=1e9,
)  # fmt: skip
FILES = {"moe.json": "let all hosts read the same"}


def found(answers, asking="node1"):
    return findings.find(answers, asking, FILES, 29500)


def four(slots=2, **changes):
    """Four hosts that are alike but for the third."""
    answers = [Answer(Host(f"node{n}", slots), replace(ONE, host=f"node{n}"), unsure=1.0) for n in range(1, 5)]
    answers[2] = replace(answers[2], facts=replace(answers[2].facts, **changes))
    return answers


def test_hosts_that_are_alike_are_well():
    assert found(four()) == findings.Findings([], [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3.10.1"}, "python differs on node3 from 3 other hosts; use the same environment on all hosts"),
        ({"packages": "torch 2.13.0, numpy 2.2.6"}, "(node3: numpy 2.2.6, others: numpy 2.4.6)"),
        ({"packages": "torch 2.13.0, numpy missing"}, "node3: without numpy; install requirements.txt"),
        ({"code": "a2"}, "code differs on node3 from 3 other hosts; bring all hosts to the same version"),
        ({"files": {"moe.json": "f2"}}, "moe.json differs on node3 from 3 other hosts; let all hosts read the same"),
        ({"files": {"moe.json": ABSENT}}, "moe.json differs on node3 from 3 other hosts"),
        ({"shared_memory": 64 << 20}, "node3: /dev/shm holds 64 MiB, through which loaders hand over batches; "
         "start its container with --shm-size=1g (no"),
        ({"writable": False}, "node3: the folder of the runs cannot be written to; become its owner"),
        ({"marker_seen": False}, "node3: its folder of this name is not the shared one; mount the shared one there"),
        ({"call_error": "timed out"}, "node3: cannot reach node1 at 10.0.0.1 (timed out); let the firewall pass TCP"),
        ({"host": "node4"}, "node3, node4: all call themselves node4; give each host one line"),
        ({"torch_error": "no libcudart"}, "node3: torch cannot be imported (no libcudart); install requirements.txt"),
    ],
)  # fmt: skip
def test_a_problem_is_named_with_its_host_and_its_fix(changes, said):
    (problem,) = found(four(**changes)).problems
    assert said in problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cores": 1}, "node3: 2 ranks on 1 cores take turns; lower its slots"),
        ({"open_files": 1024}, "node3: a process may open 1024 files; raise the limit (ulimit -n 65536"),
        ({"disk": 5 << 20}, "node3: 5 MiB are free"),
        ({"blind": True}, "node3: there are devices, but torch sees none; look at nvidia-smi"),
    ],
)
def test_a_warning_is_no_problem(changes, said):
    result = found(four(**changes))
    assert result.problems == [] and len(result.warnings) == 1
    assert result.warnings[0].startswith(said)


def test_what_is_the_same_on_several_hosts_is_said_once():
    answers = [replace(one, facts=replace(one.facts, open_files=1024)) for one in four()]
    assert found(answers).warnings == [
        "node1, node2, node3, node4: a process may open 1024 files; raise the limit (ulimit -n 65536, or limits.conf)"
    ]


def test_devices():
    gpus = {"device": "NVIDIA H100", "devices": 2, "driver": "CUDA 13.0"}
    same = [replace(one, facts=replace(one.facts, **gpus)) for one in four()]
    assert found(same).problems == []
    same[1] = replace(same[1], facts=replace(same[1].facts, devices=1))
    assert found(same).problems == ["node2: 2 ranks but 1 visible devices; lower its slots"]
    large = replace(ONE, devices=8, shared_memory=64 << 20)
    assert "--shm-size=16g" in found([Answer(Host("node1", 8), large)]).problems[0]
    assert any("device differs on node3" in problem for problem in found(four(**gpus)).problems)


def test_a_clock_is_off_only_beyond_the_error_of_reading_it():
    def off(seconds):
        answers = four()
        answers[2] = replace(answers[2], ahead=seconds)
        return found(answers).problems

    assert off(5.9) == off(-5.9) == []
    assert off(60.0) == ["node3: its clock is +60 s off the others'; start its time service"]
    assert off(-7.0) == ["node3: its clock is -7 s off the others'; start its time service"]


def test_of_two_hosts_the_one_that_asks_has_the_right_time():
    answers = four()[:2]
    assert "node2" in found([answers[0], replace(answers[1], ahead=60.0)]).problems[0]
    assert "node1" in found([replace(answers[0], ahead=60.0), answers[1]], asking="node2").problems[0]


def test_a_host_that_only_asks_need_not_be_reached():
    result = found(four(call_error="timed out"), asking="login")
    assert result.problems == [] and "cannot reach login" in result.warnings[0]


def test_a_taken_port_matters_on_the_first_host_alone():
    assert found(four(port_taken=True)).warnings == []
    first = replace(ONE, port_taken=True)
    assert "node1: port 29500 is taken" in found([Answer(Host("node1", 1), first)]).warnings[0]


def test_a_file_that_is_nowhere():
    answers = [replace(one, facts=replace(one.facts, files={})) for one in four()]
    assert found(answers).problems == ["moe.json: on none of the hosts; let all hosts read the same"]


def test_a_host_that_did_not_answer_hides_nothing_of_the_others():
    answers = [Answer(Host("node1", 2), None, "refuses ssh; start its sshd"), *four(code="a2")[1:]]
    assert found(answers).problems == [
        "node1: refuses ssh; start its sshd",
        "code differs on node3 from 2 other hosts; bring all hosts to the same version of this folder",
    ]
    assert found([Answer(Host("node1", 2), None, "is down")]).problems == ["node1: is down"]
