"""The launchers of a run are killed: the ranks save themselves and end, nothing stays behind."""

import re
import time

import psutil
import pytest

from sparse_mlp_ds.checkpoints import manifest
from sparse_mlp_ds.distributed import processes
from tests.helpers.launcher import MOE, Launch, small_recipe
from tests.helpers.processes import agents_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
BOUND = 30


@pytest.mark.parametrize("victim", ["deepspeed.launcher.launch", "bin/deepspeed"])
def test_a_killed_launcher(tmp_path, victim):
    small_recipe(tmp_path, epochs=1000)
    with Launch(tmp_path, "--recipe", "small.yaml", "--ds_config", MOE, "--out", "run") as launch:
        launch.wait_until(lambda: re.search(r"train +2/", launch.output()), 300)
        front = psutil.Process(launch.process.pid)
        family = [front, *front.children(recursive=True)]
        everyone = {*family, *agents_of(one.pid for one in family)}
        assert len(everyone) >= len(family) + 2
        try:
            next(one for one in family if victim in " ".join(processes.command(one)[:4])).kill()
            started = time.monotonic()
            while left := [one for one in everyone if processes.runs(one)]:
                assert time.monotonic() - started < BOUND, (left, launch.output())
                time.sleep(0.1)
            print(f"gone after {time.monotonic() - started:.1f} s")
        finally:
            for one in everyone:
                if one.is_running():
                    one.kill()
    assert "is gone; the run saves and ends" in launch.output() and "Traceback" not in launch.output()
    newest, passed_over = manifest.newest(tmp_path / "run/checkpoints")
    assert newest and not passed_over
