"""What a record asks of a GPU: counts of all MoE layers and signs of collapse come with the one answer it waits for."""

import json
import os
import subprocess
import sys

import pytest

from tests.gpu_emulated.runs import REPOSITORY


@pytest.mark.parametrize("layers", [1, 5])
def test_the_host_waits_equally_often_however_many_layers_are_counted(layers):
    command = [sys.executable, "-m", "tests.gpu_emulated.record", str(layers)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # One for the host's own figures to get there, one for the sums to come back.
    assert found["counts"]["synchronisations"] == 2
    assert 1 < found["figures"]["effective_rank"] <= 5, "signs of collapse come along"
    for layer in range(layers):
        assert found["figures"][f"moe/{layer}.moe_c/items"] == [7, 10, 0]
        assert found["figures"][f"moe/{layer}.moe_c/dead"] == 1
