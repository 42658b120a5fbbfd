"""The emulated GPU itself: what it refuses, and what it counts."""

import json
import os
import subprocess
import sys

import pytest

from tests.gpu_emulated.runs import REPOSITORY

EXPECTED = {
    "add a CPU tensor": "refused",
    "multiply by a CPU number": {"launches": 2},
    "product with a CPU matrix": "refused",
    "write into a CPU number": "refused",
    "to numpy": "refused",
    "random numbers of a CPU generator": "refused",
    "assign a CPU tensor": "refused",
    "one operation": {"launches": 1},
    "a view": {"launches": 1},
    "nothing to compute": {},
    "item": {"launches": 1, "synchronisations": 1},
    "tolist": {"launches": 1, "synchronisations": 1},
    "if": {"launches": 2, "synchronisations": 1},
    "index by a mask": {"launches": 4, "synchronisations": 1},
    "fill by a mask": {"launches": 5},
    "nonzero": {"launches": 2, "synchronisations": 1},
    "repeat by counts": {"launches": 4, "synchronisations": 1},
    "make from a list": {"synchronisations": 1},
    "pageable copy": {"synchronisations": 1},
    "page-locked copy": {"copies": 1},
    "copy back": {"launches": 1, "synchronisations": 1},
}


@pytest.fixture(scope="module")
def outcomes():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tests.gpu_emulated.examples"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_it_counts_and_refuses(outcomes, name):
    assert outcomes[name] == EXPECTED[name]


@pytest.mark.parametrize("name", ["rows behind the last expert are not written", "gradients reach the device"])
def test_examples_that_check_themselves(outcomes, name):
    assert outcomes[name] != "refused"
