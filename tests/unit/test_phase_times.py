"""Where the time of a stage goes: every second counts for the phase that was begun last."""

import time

import pytest
import torch

from sparse_mlp_ds.train import phase_times
from sparse_mlp_ds.train.phase_times import PhaseTimes
from sparse_mlp_ds.watchdog.client import Watch


class Told(Watch):
    """A watchdog that notes what it is told."""

    def __init__(self):
        super().__init__()
        self.phases = []

    def at(self, phase, stage=None, step=None):
        self.phases.append((phase, step))


def test_seconds_count_for_the_phase_that_goes_on(monkeypatch):
    clock = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr(phase_times.time, "perf_counter", lambda: next(clock))
    seconds, watch = {"forward": 100.0}, Told()  # what earlier starts of the stage counted
    times = PhaseTimes(watch, seconds, torch.device("cpu"))
    times.at("data", step=3)
    times.count("update")
    times.at("forward")
    times.at("backward")
    times.at("forward")
    assert seconds == {"data": 1.0, "update": 2.0, "forward": 107.0, "backward": 0.5}
    assert watch.phases == [("data", 3), ("forward", None), ("backward", None), ("forward", None)]


def test_real_time_is_counted():
    seconds: dict[str, float] = {}
    times = PhaseTimes(Watch(), seconds, torch.device("cpu"))
    times.at("data")
    time.sleep(0.05)
    times.at("forward")
    assert 0.05 <= seconds["data"] < 5 and "forward" not in seconds


class Mark:
    """A mark in the stream of a device that has passed all marks up to `passed`."""

    made, passed = 0, 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Mark.made += 1
        self.number = Mark.made

    def query(self):
        return self.number <= Mark.passed

    def elapsed_time(self, later):
        assert self.query() and later.query(), "CUDA raises for a mark that the device has not passed"
        return 1000.0 * (later.number - self.number)


def test_on_a_gpu_the_device_is_never_waited_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Mark)
    Mark.made = Mark.passed = 0
    seconds: dict[str, float] = {}
    times = PhaseTimes(Watch(), seconds, torch.device("cuda"))
    for phase in ("data", "forward", "backward", "update"):
        times.at(phase)
    assert seconds == {}  # the host is ahead of the device
    Mark.passed = 3
    times.at("record")
    assert seconds == {"data": 1.0, "forward": 1.0}
    Mark.passed = 6
    times.at("data")
    assert seconds == pytest.approx({"data": 1.0, "forward": 1.0, "backward": 1.0, "update": 1.0, "record": 1.0})
