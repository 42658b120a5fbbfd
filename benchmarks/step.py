"""Training throughput of Sparse-MLP against the Mixer it comes from: full steps, interleaved, on one process."""

import argparse
import json
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.neighbours import busy
from sparse_mlp_ds import rng
from sparse_mlp_ds.distributed import host
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights

PAIRS = {"B": ("mixer_b16", "sparse_mlp_b16"), "L": ("mixer_l16", "sparse_mlp_l16")}


def main() -> None:
    """Time the pairs and print images per second and the ratio sparse / dense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--images", type=int, default=8, help="batch size; routing groups have 8 images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0], help="busy processes beside it, in turn (0)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    host.keep_freed_memory()  # as every rank without a GPU does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    rows = []
    for size in args.sizes:
        steps = [_stepper(name, args.images, device) for name in PAIRS[size]]
        for step in steps:
            step()  # warm up
        for number in args.neighbours:
            with busy(number):
                times = [[_timed(step, device) for step in steps] for _ in range(args.rounds)]
            rows += _rows(PAIRS[size], times, args.images, number)
    if args.json:
        print(json.dumps(rows))
        return
    columns = ("model", "neighbours", "img/s", "spread", "sparse / dense", "spread")
    table = Table(*columns, title=f"training steps on {device.type}")
    for row in rows:
        ratio = (f"{row['ratio_to_dense']:.2f}", _spread(row["ratio_spread"])) if "ratio_to_dense" in row else ("", "")
        model = (row["model"], str(row["neighbours"]))
        table.add_row(*model, f"{row['images_per_second']:.2f}", _spread(row["spread"]), *ratio)
    Console().print(table)


def _rows(names: tuple[str, str], times: list[list[float]], images: int, neighbours: int) -> list[dict]:
    """Return a row for each model of a pair. times: in each round, seconds of a step of each."""
    rows = []
    for position, name in enumerate(names):
        rates = [images / round_[position] for round_ in times]
        rows.append({"model": name, "neighbours": neighbours, "images_per_second": statistics.median(rates)})
        rows[-1]["spread"] = [min(rates), max(rates)]
    ratios = [dense / sparse for dense, sparse in times]
    rows[-1] |= {"ratio_to_dense": statistics.median(ratios), "ratio_spread": [min(ratios), max(ratios)]}
    return rows


def _stepper(name: str, images: int, device: torch.device):
    model = registry.build(registry.preset(name), classes=1000)
    init_weights(model, 0)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.randn(images, 3, 224, 224, device=device)
    labels = torch.arange(images, device=device)
    keys = rng.sample_keys(0, torch.arange(images, device=device), "benchmark")

    def step() -> None:
        logits, reports = model(x, keys)
        loss = torch.nn.functional.cross_entropy(logits, labels) + sum(r.balance for r in reports.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(step, device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _spread(values: list[float]) -> str:
    return f"{values[0]:.2f} .. {values[1]:.2f}"


if __name__ == "__main__":
    main()
