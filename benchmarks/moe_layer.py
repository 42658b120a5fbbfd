"""One MoE layer, forward and backward, against a dense MLP of the same MACs and DeepSpeed's stock MoE, in one run.

Sizes are Sparse-B's and Sparse-L's on 16 images: MoE_S routes 384 items of length 392, hidden 768, K = 1; MoE_C 392
items of 384, hidden 1536, 4 experts, K = 2 (Sparse-MLP, table 2).
"""

import argparse
import json
import math
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.neighbours import busy
from sparse_mlp_ds import rng
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models.layers import Mlp, init_weights
from sparse_mlp_ds.moe.layer import MoELayer, Routing

IMAGES = 16
CASES = {
    "MoE_S, 8 experts": (384, 392, 768, 8, 1),
    "MoE_S, 16 experts": (384, 392, 768, 16, 1),
    "MoE_S, 64 experts": (384, 392, 768, 64, 1),
    "MoE_C, 4 experts, K=2": (392, 384, 1536, 4, 2),
}
"""Name -> items per image T, item length D, hidden width, experts E, K."""
KINDS = ("ours", "dense", "stock")
WARM_UP = 2


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0], help="busy processes beside it, in turn (0)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with process_group.join():
        from sparse_mlp_ds.train.engine import init_deepspeed

        init_deepspeed()
        rows = []
        for number in args.neighbours:
            with busy(number):
                rows += [_case(name, args.rounds) | {"neighbours": number} for name in CASES]
        exponent = _memory_exponent()
    if args.json:
        print(json.dumps({"layers": rows, "memory_exponent": exponent}))
        return
    ratios = ("ours / dense", "quartiles", "stock / ours", "quartiles")
    table = Table("layer", "neighbours", "placed", *(f"{k} ms" for k in KINDS), *ratios)
    for row in rows:
        figures = [f"{row[kind]:.0f}" for kind in KINDS]
        ratios = [f"{row['over_dense']:.2f}", row["over_dense_spread"], f"{row['stock_over']:.2f}", row["stock_spread"]]
        table.add_row(row["layer"], str(row["neighbours"]), f"{100 * row['placed']:.0f} %", *figures, *ratios)
    Console(width=130).print(table)
    print(f"bytes kept for backward grow with the number of items to the power {exponent:.3f}")


def _case(name: str, rounds: int) -> dict:
    items, dim, hidden, experts, k = CASES[name]
    x = torch.randn(IMAGES, items, dim, device=process_group.device(), requires_grad=True)
    keys = rng.sample_keys(0, torch.arange(IMAGES, device=process_group.device()), "benchmark")
    dense, ours, stock = (
        Mlp(dim, k * hidden).to(x.device),
        _ours(dim, hidden, experts, k),
        _stock(dim, hidden, experts, k),
    )
    layers = {
        "ours": (ours, lambda: (y := ours(x, keys))[0].sum() + y[1].balance),
        "dense": (dense, lambda: dense(x).sum()),
        "stock": (stock, lambda: (y := stock(x))[0].sum() + y[1]),
    }
    times = {kind: [] for kind in KINDS}
    for number in range(WARM_UP + rounds):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:  # so that no kind always follows the same one
            seconds = _timed(*layers[kind], x)
            if number >= WARM_UP:
                times[kind].append(seconds)
    *_, made, dropped, _ = ours(x, keys)[1].sums.tolist()
    share = 1 - dropped / made
    over_dense = [a / b for a, b in zip(times["ours"], times["dense"], strict=True)]
    stock_over = [a / b for a, b in zip(times["stock"], times["ours"], strict=True)]
    return {
        "layer": name,
        "placed": share,
        **{kind: 1000 * statistics.median(times[kind]) for kind in KINDS},
        "over_dense": statistics.median(over_dense),
        "over_dense_spread": _quartiles(over_dense),
        "stock_over": statistics.median(stock_over),
        "stock_spread": _quartiles(stock_over),
    }


def _quartiles(values: list[float]) -> str:
    lower, _, upper = statistics.quantiles(values, n=4)
    return f"{lower:.2f} .. {upper:.2f}"


def _ours(dim: int, hidden: int, experts: int, k: int) -> nn.Module:
    layer = MoELayer(dim, experts, k, lambda: Mlp(dim, hidden), Routing())
    init_weights(layer, 0)
    return layer.to(process_group.device())


def _stock(dim: int, hidden: int, experts: int, k: int) -> nn.Module:
    from deepspeed.moe.layer import MoE

    layer = MoE(dim, Mlp(dim, hidden), experts, ep_size=1, k=k, capacity_factor=Routing().capacity_factor)
    layer.set_deepspeed_parallelism()
    return layer.to(process_group.device())


def _timed(layer: nn.Module, forward, x: torch.Tensor) -> float:
    layer.zero_grad()
    x.grad = None
    started = time.perf_counter()
    forward().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _memory_exponent() -> float:
    """Return the slope of log(bytes saved for backward, without parameters) over log(items), from 8 to 64 images."""
    items, dim, hidden, experts, k = CASES["MoE_S, 16 experts"]
    layer, points = _ours(dim, hidden, experts, k), []
    parameters = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    for images in (8, 16, 32, 64):
        x = torch.randn(images, items, dim, device=process_group.device(), requires_grad=True)
        keys = rng.sample_keys(0, torch.arange(images, device=process_group.device()), "benchmark")
        saved: dict[int, int] = {}

        def note(tensor, saved=saved):
            if tensor.untyped_storage().data_ptr() not in parameters:
                saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x, keys)
        points.append((math.log(images), math.log(sum(saved.values()))))
    (x0, y0), (x1, y1) = points[0], points[-1]
    return (y1 - y0) / (x1 - x0)


if __name__ == "__main__":
    main()
