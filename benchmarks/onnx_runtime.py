"""One image through ONNX Runtime and through this package's own forward pass, on the CPU, interleaved in one run.

An exported graph runs all experts of an MoE layer on all items, where the package's forward pass runs K of E on each.
Weights are random, with the routers as they are initialised: what an expert computes does not change how long it takes.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.hub import SparseVisionModel, graph
from sparse_mlp_ds.hub.config import ModelConfig, Origin
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights

WANTED = {"mixer_b16": "at most 1", "sparse_mlp_b16": "at most 1.5", "sparse_mlp_l16": "to be told"}
"""Model -> what time in ONNX Runtime over time of the forward pass is wanted."""
WARM_UP = 2


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(WANTED), metavar="NAME", help="registered models")
    parser.add_argument("--rounds", type=int, default=15, help="timed images of each model (15)")
    parser.add_argument("--threads", type=int, help="threads of both (default: those that torch takes)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [_measure(name, args.rounds) for name in args.models]
    if args.json:
        print(json.dumps(rows))
        return
    table = Table("model", "forward ms", "ONNX Runtime ms", "ratio", "quartiles", "wanted", "export s", "load")
    for row in rows:
        times = [f"{1000 * row[key]:.0f}" for key in ("forward", "onnx_runtime")]
        quartiles = " .. ".join(f"{value:.2f}" for value in row["quartiles"])
        wanted = WANTED.get(row["model"], "")
        cells = (row["model"], *times, f"{row['ratio']:.2f}", quartiles, wanted, f"{row['export']:.0f}", row["load"])
        table.add_row(*map(str, cells))
    Console(width=120).print(table)
    print("ratio: median, over pairs of passes, of the time in ONNX Runtime over the time of the forward pass")


def _measure(name: str, rounds: int) -> dict:
    model = _model(name)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        graph.write_onnx(model, Path(folder) / "model.onnx")
        export = time.perf_counter() - started
        gc.collect()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait for more work in a loop would take the cores from the forward pass, which comes next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options, providers=["CPUExecutionProvider"])
    images = torch.randn(1, 3, model.config.spec.image_size, model.config.spec.image_size)
    passes = {"forward": lambda: model(images), "onnx_runtime": lambda: session.run(None, {"images": images.numpy()})}
    times: dict[str, list[float]] = {kind: [] for kind in passes}
    with torch.inference_mode():
        for number in range(WARM_UP + rounds):
            for kind in sorted(passes, reverse=number % 2 == 1):  # so that none is always the first
                started = time.perf_counter()
                passes[kind]()
                if number >= WARM_UP:
                    times[kind].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(times["forward"], times["onnx_runtime"], strict=True)]
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return {
        "model": name,
        **{kind: statistics.median(taken) for kind, taken in times.items()},
        "ratio": statistics.median(ratios),
        "quartiles": (lower, upper),
        "export": export,
        "load": round(os.getloadavg()[0], 1),
    }


def _model(name: str) -> SparseVisionModel:
    origin = Origin(version="benchmark", weights="online")
    config = ModelConfig(
        name=name, spec=registry.preset(name), classes=tuple(map(str, range(1000))), data=Pixels(), origin=origin
    )
    model = SparseVisionModel(config)
    init_weights(model.backbone, seed=0)
    torch.nn.init.normal_(model.backbone.head.weight, std=0.02)
    return model


if __name__ == "__main__":
    main()
