"""The launchers of a run are killed: the ranks save themselves and end, nothing stays behind."""

import re
import time

import psutil
import pytest

from sparse_mlp_ds.checkpoints import manifest
from tests.helpers.launcher import MOE, Launch, small_recipe

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
BOUND = 30


@pytest.mark.parametrize("victim", ["deepspeed.launcher.launch", "bin/deepspeed"])
def test_a_killed_launcher(tmp_path, victim):
    small_recipe(tmp_path, epochs=1000)
    with Launch(tmp_path, "--recipe", "small.yaml", "--ds_config", MOE, "--out", "run") as launch:
        launch.wait_until(lambda: re.search(r"train +2/", launch.output()), 300)
        front = psutil.Process(launch.process.pid)
        family = [front, *front.children(recursive=True)]
        agents = [
            one
            for one in psutil.process_iter(["cmdline"])
            if "sparse_mlp_ds.watchdog.agent" in (one.info["cmdline"] or [])
        ]
        everyone = {*family, *(one for one in agents if any(f'"pid": {r.pid},' in one.cmdline()[-1] for r in family))}
        assert len(everyone) >= len(family) + 2
        try:
            next(one for one in family if victim in " ".join(one.cmdline()[:4])).kill()
            started = time.monotonic()
            while left := [one for one in everyone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
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
