"""The results of `benchmarks.scaling` as tables: throughput, bytes, single collectives, and the cost of delays."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.train.step_collectives import FLOAT32, mixtures

Results = dict[str, Any]


def show(results: Results) -> None:
    """Print all tables as Markdown; each figure is a median over rounds, with its quartiles in brackets."""
    print(f"One host had a core for {100 * quiet(results):.0f} % of its time; the rest went to other jobs.\n")
    head = ("", "hosts", "images per host", "delay", "step", "images/s over 1 host", "of the ideal", "CPU time")
    rows = [
        (row["mode"], row["hosts"], row["images"], f"{row['delay']:g} ms", f"{_of(row['seconds'], 1000, 0)} ms")
        + (_of(row["speedup"]), _of(row["efficiency"]), f"{statistics.median(row['cpu']):.2f} s")
        for row in throughput(results)
        if row["hosts"] > 1 or not row["delay"]
    ]
    print_table(head, rows)
    head = ("hosts", "sent", "least", "sent / least", "without drops", "padded at 1.05", "padded for the fullest")
    rows = [
        (row["hosts"], f"{row['sent'] / 1e6:.2f} MB", f"{row['least'] / 1e6:.2f} MB")
        + tuple(f"{row[ratio]:.3f}" for ratio in ("ratio", "no_drops", "padded", "padded_no_drops"))
        for row in traffic(results)
    ]
    print_table(head, rows)
    head = ("", "hosts", "delay", "8 bytes", "256 KB", "2 MB", "bandwidth per rank")
    rows = [
        (row["kind"], row["hosts"], f"{row['delay']:g} ms")
        + tuple(f"{1000 * row[size]:.1f} ms" for size in ("small", "middle", "large"))
        + (f"{row['bandwidth'] / 1e6:.0f} MB/s",)
        for row in single(results)
    ]
    print_table(head, rows)
    head = ("hosts", "delay", "collectives", "of them all-to-all", "hops x delay", "from single ones", "measured")
    rows = [
        (row["hosts"], f"{row['delay']:g} ms", row["calls"], row["all_to_alls"], f"{1000 * row['hops']:.0f} ms")
        + (f"{1000 * row['predicted']:.0f} ms", f"{_of(row['measured'], 1000, 0)} ms")
        for row in added(results)
    ]
    print_table(head, rows)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table whose first column is text and whose other columns are figures."""
    for cells in (head, ("---", *["---:"] * (len(head) - 1)), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print()


def quiet(results: Results) -> float:
    """Return the CPU time of one host divided by its elapsed time; it is below 1 if other jobs used the machine."""
    return statistics.median(
        step["cpu"] / statistics.mean(step["seconds"]) for step in results["steps"] if step["hosts"] == 1
    )


def throughput(results: Results) -> list[Results]:
    """Return one row per series, number of hosts and delay; each list in it has one figure per round.

    `speedup` compares images per second with those of one host in the same round and with the same delay. Each rank has
    one thread, so the number of cores limits the speedup: that limit is `ideal`.
    """
    cells = _cells(results)
    hosts = sorted({step["hosts"] for step in results["steps"]})
    delays = sorted({step["delay"] for step in results["steps"]})
    rows = []
    for mode in ("strong", "weak"):
        for n in hosts:
            images = results["strong"] // n if mode == "strong" else results["weak"]
            base = results["strong"] if mode == "strong" else results["weak"]
            ideal = min(n, results["cores"])
            for delay in delays:
                times, cpu = cells[n, images, delay]
                speedup = [
                    (n * images / t) / (base / alone) for t, alone in zip(times, cells[1, base, delay][0], strict=True)
                ]
                rows.append(
                    {"mode": mode, "hosts": n, "images": images, "delay": delay, "seconds": times, "cpu": cpu}
                    | {"speedup": speedup, "ideal": ideal, "efficiency": [s / ideal for s in speedup]}
                )
    return rows


def traffic(results: Results) -> list[Results]:
    """Return per number of hosts the bytes of rows that ranks send each other, and ratios to the least possible."""
    layers, rows = mixtures(registry.preset(results["model"])), []
    factor = {"moe_s": MoE().capacity_factor_s, "moe_c": MoE().capacity_factor_c}
    for count in results["counts"]:
        n, images, ranks = count["hosts"], count["images"], count["ranks"]
        # Rows travel to their experts and back, in both passes; (n - 1) of n rows belong to a different rank.
        remote = 4 * n * (n - 1) / n
        sent, forward = (
            sum(c["sent"] for rank in ranks for c in rank[part] if c["kind"] == "all_to_all" and not c["integers"])
            for part in ("step", "forward")
        )
        least = remote * sum(layer.row_bytes(images, FLOAT32) for layer in layers)
        padded = remote * sum(layer.padded_bytes(images, FLOAT32, factor[layer.kind]) for layer in layers)
        fullest = [max(max(rank["rows"][number]) for rank in ranks) for number in range(len(layers))]
        whole = remote * sum(
            layer.experts * most * layer.width * FLOAT32 for layer, most in zip(layers, fullest, strict=True)
        )
        rows.append(
            {"hosts": n, "sent": sent, "least": least, "ratio": sent / least, "no_drops": 2 * forward / least}
            | {"padded": padded / least, "padded_no_drops": whole / least}
        )
    return rows


def single(results: Results) -> list[Results]:
    """Return the seconds of single collectives, and the bandwidth from a line fitted to seconds over bytes."""
    rows = []
    for (kind, n, delay), points in _single(results).items():
        sizes, times = list(points), list(points.values())
        # Share of its data that a rank sends: in an all-to-all all but its own part, in an all-reduce ring twice that.
        outward = {"all_to_all": (n - 1) / n, "all_reduce": 2 * (n - 1) / n, "all_gather": n - 1}[kind]
        slope = statistics.linear_regression(sizes, times).slope
        at = lambda size, sizes=sizes, times=times: float(np.interp(size, sizes, times))  # noqa: E731
        rows.append(
            {"kind": kind, "hosts": n, "delay": delay, "bandwidth": outward / slope}
            | {"small": times[0], "middle": at(256 << 10), "large": at(2 << 20)}
        )
    return rows


def added(results: Results) -> list[Results]:
    """Return the seconds that delays add to a step of the strong series: measured, and predicted in two ways.

    `hops` counts the delays that follow one another inside each collective of gloo: an all-to-all is a round trip,
    because receivers first announce that they are ready; a ring has one round trip fewer than ranks. `predicted` adds
    to each collective what the delay adds to a single one of its kind and size.
    """
    cells, alone, rows = _cells(results), _single(results), []
    delays = sorted({step["delay"] for step in results["steps"]} - {0})
    for count in results["counts"]:
        n, images = count["hosts"], count["images"]
        calls = [call for call in count["ranks"][0]["step"] if call["ranks"] > 1]
        for delay in delays:
            seconds = lambda call, d: np.interp(call["bytes"], *_line(alone[call["kind"], n, d]))  # noqa: B023, E731
            plain, slow = cells[n, images, 0][0], cells[n, images, delay][0]
            rows.append(
                {
                    "hosts": n,
                    "delay": delay,
                    "calls": len(calls),
                    "all_to_alls": sum(call["kind"] == "all_to_all" for call in calls),
                    "hops": sum(2 if call["kind"] == "all_to_all" else 2 * (n - 1) for call in calls) * delay / 1000,
                    "predicted": float(sum(seconds(call, delay) - seconds(call, 0) for call in calls)),
                    "measured": [b - a for a, b in zip(plain, slow, strict=True)],
                }
            )
    return rows


def plot(results: Results, path: Path) -> None:
    """Draw images per second over the number of hosts into an SVG file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = throughput(results)
    with rc_context({"svg.hashsalt": "sparse_mlp_ds", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("strong", "weak"), strict=True):
            for delay in sorted({row["delay"] for row in rows}):
                series = [row for row in rows if (row["mode"], row["delay"]) == (mode, delay)]
                hosts = [row["hosts"] for row in series]
                middles = [statistics.median(row["speedup"]) for row in series]
                (line,) = axes.plot(hosts, middles, marker="o", label=f"{delay:g} ms")
                spread = np.array([_quartiles(row["speedup"]) for row in series]).T
                axes.vlines(hosts, *spread, color=line.get_color())
            axes.plot(hosts, [row["ideal"] for row in series], "k--", label=f"{results['cores']} cores")
            axes.set(title=f"{mode} scaling", xlabel="hosts", xticks=hosts, ylim=(0, None))
        figure.axes[0].set_ylabel("images/s over one host")
        figure.legend(*axes.get_legend_handles_labels(), title="delay, one way", loc="outside right center")
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def _cells(results: Results) -> dict[tuple[int, int, float], tuple[list[float], list[float]]]:
    """Return (hosts, images per host, delay) -> median seconds and CPU seconds of a step, two lists over rounds."""
    cells: dict[tuple[int, int, float], tuple[list[float], list[float]]] = {}
    for step in results["steps"]:
        times, cpu = cells.setdefault((step["hosts"], step["images"], step["delay"]), ([], []))
        times.append(statistics.median(step["seconds"]))
        cpu.append(step["cpu"])
    return cells


def _single(results: Results) -> dict[tuple[str, int, float], dict[int, float]]:
    """Return (kind, hosts, delay) -> bytes -> median seconds."""
    times: dict[tuple[str, int, float], dict[int, list[float]]] = {}
    for timing in results["collectives"]:
        sizes = times.setdefault((timing["kind"], timing["hosts"], timing["delay"]), {})
        sizes.setdefault(timing["bytes"], []).append(timing["seconds"])
    return {key: {size: statistics.median(t) for size, t in sizes.items()} for key, sizes in sorted(times.items())}


def _line(points: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _of(values: list[float], scale: float = 1, digits: int = 2) -> str:
    low, high = _quartiles(values)
    return f"{scale * statistics.median(values):.{digits}f} ({scale * low:.{digits}f} .. {scale * high:.{digits}f})"
