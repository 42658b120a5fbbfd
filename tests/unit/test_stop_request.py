"""Who asks to stop, and how often, in a real process."""

import subprocess
import sys
import time

import pytest

LISTEN = """
import sys, time
from pathlib import Path
from sparse_mlp_ds.train import stop_request
stop_request.AGAIN_SECONDS = 1.0
request = stop_request.StopRequest(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(0.01)
    if request.agreed():
        print("agreed", flush=True)
"""


@pytest.fixture
def listener(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_signal_asks_and_a_later_one_ends_at_once(listener, name):
    import signal

    number = getattr(signal, name)
    listener.send_signal(number)
    assert listener.stdout.readline() == "agreed\n"
    listener.send_signal(signal.SIGTERM)  # the same request, by way of a launcher
    time.sleep(0.3)
    assert listener.poll() is None
    time.sleep(1)
    listener.send_signal(number)
    assert listener.wait(10) == 128 + number
    assert listener.stderr.read().count(f"rank 0: {name}, stopping after this step") == 1


@pytest.mark.timeout(120)
def test_a_file_asks(listener, tmp_path):
    (tmp_path / "stop").touch()
    _, _, line = listener.stdout.readline().partition(" ")  # the time is in front
    assert line == f"{tmp_path}/stop: asked to stop\n"
    assert listener.stdout.readline() == "agreed\n"
