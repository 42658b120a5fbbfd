"""How the cases of `benchmarks.gpu` are timed: on the device's own clock, with what the host does meanwhile."""

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PEAKS = {"bf16": 989e12, "tf32": 494.5e12, "fp32": 66.9e12}
"""Dense FLOP/s that NVIDIA states for the H100 SXM and the H200; the share of them (MFU) is said of these alone."""
MOST = 50

Step = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    toy: bool
    """Tiny models and few repetitions."""
    images: int
    """Of one step."""
    data: tuple[Path, ...]
    """Folders of indexed tars of JPEGs."""
    folder: Path
    """For whatever a case writes."""

    seconds: float = 1.0
    """How long a step is repeated."""


def device() -> torch.device:
    """Return the device that is measured."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name() -> str:
    """Return its name."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(step: Step, settings: Settings, warm_up: int = 3) -> dict[str, float]:
    """Return a step's median `ms`, its quartiles, `host_ms` and `peak_gib`.

    ms: from one step's beginning to the next one's on the device, steps issued one behind the other as in training.
    host_ms: how long the call takes that issues the step to an idle device; where a step waits for the device, that
    waiting is part of it. peak_gib: most memory of torch's allocator in use at once.
    """
    for _ in range(1 if settings.toy else warm_up):
        step()
    synchronize()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    marks, until = [_mark()], time.perf_counter() + (0 if settings.toy else settings.seconds)
    while len(marks) < (3 if settings.toy else 5) or (time.perf_counter() < until and len(marks) < MOST):
        step()
        marks.append(_mark())
    synchronize()
    times = [_between(a, b) for a, b in zip(marks, marks[1:], strict=False)]
    hosts = []
    for _ in range(1 if settings.toy else 3):
        synchronize()
        started = time.perf_counter()
        step()
        hosts.append(1000 * (time.perf_counter() - started))
    synchronize()
    lower, median, upper = statistics.quantiles(times, n=4)
    row = {"ms": median, "ms_low": lower, "ms_high": upper, "host_ms": statistics.median(hosts)}
    if torch.cuda.is_available():
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def _mark() -> torch.cuda.Event | float:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: torch.cuda.Event | float, second: torch.cuda.Event | float) -> float:
    if isinstance(first, float):
        return 1000 * (second - first)
    return first.elapsed_time(second)


def rate(row: dict, images: int, macs: int, precision: str) -> dict[str, float]:
    """Return `images_per_second` of a training step and `mfu`: forward and backward are 6 FLOPs a MAC.

    macs: multiply-accumulates of one image's forward pass. mfu is left out for devices whose peak is not known.
    """
    per_second = 1000 * images / row["ms"]
    known = any(name in device_name() for name in ("H100", "H200"))
    return {"images_per_second": per_second} | ({"mfu": 6 * macs * per_second / PEAKS[precision]} if known else {})


def launches(step: Step, top: int = 0) -> dict:
    """Return what one step asks of the device: `kernels`, `copies`, their `busy_ms`, the host's `waits` by name.

    top: kernels to list, those that take longest first, with their number and milliseconds. On a CPU, operations are
    counted in place of kernels, and take no time.
    """
    step()
    synchronize()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as recorded:
        step()
        synchronize()
    events = recorded.key_averages()
    kind = torch.autograd.DeviceType.CUDA if torch.cuda.is_available() else torch.autograd.DeviceType.CPU
    on_device = [e for e in events if e.device_type == kind and not e.is_user_annotation]
    kernels = [e for e in on_device if not e.key.startswith(("Memcpy", "Memset"))]
    waits = {e.key: e.count for e in events if "Synchronize" in e.key}
    row: dict = {
        "kernels": sum(e.count for e in kernels),
        "copies": sum(e.count for e in on_device) - sum(e.count for e in kernels),
        "busy_ms": sum(e.self_device_time_total for e in on_device) / 1000,
        "waits": sum(waits.values()) - 1 if waits else 0,  # the last one is ours
        "waits_by_call": waits,
    }
    if top:
        slowest = sorted(on_device, key=lambda e: -e.self_device_time_total)[:top]
        row["slowest"] = [[e.key[:120], e.count, round(e.self_device_time_total / 1000, 3)] for e in slowest]
    return row


def waits_by_place(step: Step) -> dict[str, int]:
    """Return how often one step makes the host wait for the device, by the line of Python that does."""
    if not torch.cuda.is_available():
        return {}
    synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    places = Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    return dict(places.most_common(40))
