"""What `benchmarks.scaling` measured, as tables: throughput, bytes, single collectives, and what a delay adds."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling_counts import FLOAT32, mixtures
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.recipe import MoE

Found = dict[str, Any]


def show(found: Found) -> None:
    """Print all tables as Markdown: medians over rounds, in brackets their quartiles."""
    print(f"One host had a core for {100 * quiet(found):.0f} % of its time; the rest went to other jobs.\n")
    head = ("", "hosts", "images per host", "delay", "step", "images/s over 1 host", "of the ideal", "CPU time")
    rows = [
        (row["mode"], row["hosts"], row["images"], f"{row['delay']:g} ms", f"{_of(row['seconds'], 1000, 0)} ms")
        + (_of(row["speedup"]), _of(row["efficiency"]), f"{statistics.median(row['cpu']):.2f} s")
        for row in throughput(found)
        if row["hosts"] > 1 or not row["delay"]
    ]
    print_table(head, rows)
    head = ("hosts", "sent", "least", "sent / least", "without drops", "padded at 1.05", "padded for the fullest")
    rows = [
        (row["hosts"], f"{row['sent'] / 1e6:.2f} MB", f"{row['least'] / 1e6:.2f} MB")
        + tuple(f"{row[ratio]:.3f}" for ratio in ("ratio", "no_drops", "padded", "padded_no_drops"))
        for row in traffic(found)
    ]
    print_table(head, rows)
    head = ("", "hosts", "delay", "8 bytes", "256 KB", "2 MB", "bandwidth per rank")
    rows = [
        (row["kind"], row["hosts"], f"{row['delay']:g} ms")
        + tuple(f"{1000 * row[size]:.1f} ms" for size in ("small", "middle", "large"))
        + (f"{row['bandwidth'] / 1e6:.0f} MB/s",)
        for row in single(found)
    ]
    print_table(head, rows)
    head = ("hosts", "delay", "collectives", "of them all-to-all", "hops x delay", "from single ones", "measured")
    rows = [
        (row["hosts"], f"{row['delay']:g} ms", row["calls"], row["all_to_alls"], f"{1000 * row['hops']:.0f} ms")
        + (f"{1000 * row['predicted']:.0f} ms", f"{_of(row['measured'], 1000, 0)} ms")
        for row in added(found)
    ]
    print_table(head, rows)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a Markdown table: text in its first column, figures in the others."""
    for cells in (head, ("---", *["---:"] * (len(head) - 1)), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print()


def quiet(found: Found) -> float:
    """Return one host's CPU time over its time: below 1 by as much as the machine was not this benchmark's own."""
    return statistics.median(
        step["cpu"] / statistics.mean(step["seconds"]) for step in found["steps"] if step["hosts"] == 1
    )


def throughput(found: Found) -> list[Found]:
    """Return one row per series, hosts and delay; each list has a figure per round.

    Images per second are set against one host of the same round and delay. Ranks have one thread each, so no number of
    hosts can do more than the cores: that is `ideal`.
    """
    cells = _cells(found)
    hosts = sorted({step["hosts"] for step in found["steps"]})
    delays = sorted({step["delay"] for step in found["steps"]})
    rows = []
    for mode in ("strong", "weak"):
        for n in hosts:
            images = found["strong"] // n if mode == "strong" else found["weak"]
            base = found["strong"] if mode == "strong" else found["weak"]
            ideal = min(n, found["cores"])
            for delay in delays:
                times, cpu = cells[n, images, delay]
                speedup = [
                    (n * images / t) / (base / one) for t, one in zip(times, cells[1, base, delay][0], strict=True)
                ]
                rows.append(
                    {"mode": mode, "hosts": n, "images": images, "delay": delay, "seconds": times, "cpu": cpu}
                    | {"speedup": speedup, "ideal": ideal, "efficiency": [s / ideal for s in speedup]}
                )
    return rows


def traffic(found: Found) -> list[Found]:
    """Return per number of hosts the rows sent between ranks, in bytes, and ratios to the least there can be."""
    layers, rows = mixtures(registry.preset(found["model"])), []
    factor = {"moe_s": MoE().capacity_factor_s, "moe_c": MoE().capacity_factor_c}
    for count in found["counts"]:
        n, images, ranks = count["hosts"], count["images"], count["ranks"]
        # Rows go there and back, in the backward pass once more; of each, (n - 1) of n stay not where they are.
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


def single(found: Found) -> list[Found]:
    """Return single collectives' seconds, and the bandwidth that a line through seconds over bytes gives."""
    rows = []
    for (kind, n, delay), points in _single(found).items():
        sizes, times = list(points), list(points.values())
        # What a rank sends: of an all-to-all all but its own part, of an all-reduce's ring twice that.
        outward = {"all_to_all": (n - 1) / n, "all_reduce": 2 * (n - 1) / n, "all_gather": n - 1}[kind]
        slope = statistics.linear_regression(sizes, times).slope
        at = lambda size, sizes=sizes, times=times: float(np.interp(size, sizes, times))  # noqa: E731
        rows.append(
            {"kind": kind, "hosts": n, "delay": delay, "bandwidth": outward / slope}
            | {"small": times[0], "middle": at(256 << 10), "large": at(2 << 20)}
        )
    return rows


def added(found: Found) -> list[Found]:
    """Return what delays add to a step of the strong series: measured, and foretold in two ways.

    `hops`: from how gloo works, the delays that a collective has one after the other. An all-to-all is a round trip,
    as receivers first say that they are ready; rings have a round trip for each rank but one. `predicted`: each is as
    much longer as one of its kind and size alone.
    """
    cells, alone, rows = _cells(found), _single(found), []
    delays = sorted({step["delay"] for step in found["steps"]} - {0})
    for count in found["counts"]:
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


def plot(found: Found, path: Path) -> None:
    """Draw images per second over hosts."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    rows = throughput(found)
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
            axes.plot(hosts, [row["ideal"] for row in series], "k--", label=f"{found['cores']} cores")
            axes.set(title=f"{mode} scaling", xlabel="hosts", xticks=hosts, ylim=(0, None))
        figure.axes[0].set_ylabel("images/s over one host")
        figure.legend(*axes.get_legend_handles_labels(), title="delay, one way", loc="outside right center")
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def _cells(found: Found) -> dict[tuple[int, int, float], tuple[list[float], list[float]]]:
    """(hosts, images per host, delay) -> a round's median step and CPU seconds, round by round."""
    cells: dict[tuple[int, int, float], tuple[list[float], list[float]]] = {}
    for step in found["steps"]:
        times, cpu = cells.setdefault((step["hosts"], step["images"], step["delay"]), ([], []))
        times.append(statistics.median(step["seconds"]))
        cpu.append(step["cpu"])
    return cells


def _single(found: Found) -> dict[tuple[str, int, float], dict[int, float]]:
    """(kind, hosts, delay) -> bytes -> median seconds."""
    times: dict[tuple[str, int, float], dict[int, list[float]]] = {}
    for one in found["collectives"]:
        sizes = times.setdefault((one["kind"], one["hosts"], one["delay"]), {})
        sizes.setdefault(one["bytes"], []).append(one["seconds"])
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
