"""The scaling benchmark from end to end, at its smallest; its timings are nobody's business here, its bytes are."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import scaling_report
from tests.helpers.hosts import why_not
from tests.helpers.launcher import REPOSITORY

_reason = why_not()
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(_reason), reason=_reason)]


def test_every_row_travels_once_and_nothing_is_padded(tmp_path):
    small = ("--model", "sparse_mlp_digits", "--strong", "16", "--weak", "8", "--rounds", "1")
    command = [sys.executable, "-m", "benchmarks.scaling", "--hosts", "2", "--delays", "0", "5", *small, "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(step["hosts"], step["delay"]) for step in found["steps"]} == {(n, d) for n in (1, 2) for d in (0, 5)}
    (row,) = scaling_report.traffic(found)
    assert row["no_drops"] == pytest.approx(1, rel=0.05)  # rows that happen to stay at home are not exactly a half
    assert row["ratio"] == pytest.approx(1, rel=0.05)
    # Between two hosts: rows of two mixtures out and back in both passes and their counts (10 all-to-alls), the
    # gradients, four norms and flags, and ZeRO's parameters (an all-gather per group of them).
    counted = [(added["all_to_alls"], added["calls"]) for added in scaling_report.added(found)]
    assert counted == [(10, 19)]
