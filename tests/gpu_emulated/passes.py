"""Forward and backward pass of a narrow Sparse-B with 64 experts in MoE_S, in bf16, counted: kind -> place -> number.

python -m tests.gpu_emulated.passes FILE
"""

import json
import sys
from pathlib import Path

import torch

from tests.gpu_emulated import runtime
from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import DEVICE, emulated
from tests.gpu_emulated.runs import SPARSE_B

IMAGES = 8


def count() -> dict[str, dict[str, int]]:
    """Return what the second of two passes asks for."""
    from sparse_mlp_ds import rng
    from sparse_mlp_ds.config.recipe import model_spec
    from sparse_mlp_ds.models import registry
    from sparse_mlp_ds.models.layers import init_weights
    from sparse_mlp_ds.moe.router import Router

    model = registry.build(model_spec(SPARSE_B | {"moe_s": {"experts": 64, "hidden": 32}}), classes=10)
    init_weights(model, seed=0)
    model.to(DEVICE, torch.bfloat16)
    for module in model.modules():
        if isinstance(module, Router):
            module.float()
    images = torch.rand(IMAGES, 3, 32, 32).to(DEVICE)
    labels, numbers = (torch.arange(IMAGES, device=DEVICE) for _ in range(2))
    keys = rng.sample_keys(0, numbers, "test")
    for number in range(2):
        model.zero_grad()
        torch.autograd.set_detect_anomaly(number == 1, check_nan=False)
        counts.begin()
        logits, reports = model(images, keys)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        (loss + sum(report.balance for report in reports.values())).backward()
        found = counts.end()
    return found


if __name__ == "__main__":
    runtime.install()
    with emulated():
        Path(sys.argv[1]).write_text(json.dumps({1: count()}))
