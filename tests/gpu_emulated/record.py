"""Reads a record's figures of several MoE layers from the emulated device, and prints what that asked of it.

python -m tests.gpu_emulated.record LAYERS     prints JSON: the counts, and the figures that the record lists of a layer
"""

import json
import sys

import torch

from sparse_mlp_ds.log.meter import Meter
from sparse_mlp_ds.moe.stats import MoEReport
from sparse_mlp_ds.ssl import collapse
from tests.gpu_emulated import runtime
from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import DEVICE, emulated


def read(layers: int) -> dict[str, object]:
    """Two micro-batches of three experts each, of which the second layer's last one gets nothing."""
    meter = Meter({"moe_c": 1})
    for batch in range(2):
        sums = torch.tensor([3.0 + batch, 5.0, 0.0, 8.0 + batch, 0.0, 2.0], device=DEVICE)
        report = MoEReport(torch.zeros((), device=DEVICE), lambda sums=sums: sums)
        meter.add(torch.ones((), device=DEVICE), {f"{n}.moe_c": report for n in range(layers)}, samples=4)
    features = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    counts.begin()
    figures = meter.read(collapse.sums(features, features[..., :5], features[..., 5:10]))
    figures |= collapse.figures(meter.further, 16, 5)
    return {"counts": {kind: sum(places.values()) for kind, places in counts.end().items()}, "figures": figures}


if __name__ == "__main__":
    runtime.install()
    with emulated():
        json.dump(read(int(sys.argv[1])), sys.stdout)
