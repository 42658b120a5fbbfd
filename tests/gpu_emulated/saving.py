"""Checkpoints of tensors on the emulated device, whose copies take as long as a GPU may take for them.

python -m tests.gpu_emulated.saving FOLDER     prints JSON: what two saves asked for, and whether they used one buffer
"""

import json
import sys
from pathlib import Path

import torch

from tests.gpu_emulated import runtime, streams
from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import DEVICE, emulated

SLOW = 30.0


def save(folder: Path) -> dict[str, object]:
    """Save step 1 and keep to the rules, then step 2 and change the values too early."""
    from sparse_mlp_ds.checkpoints.saver import Saver
    from sparse_mlp_ds.checkpoints.writer import Piece

    streams.copies_take = SLOW
    weights = torch.arange(5, dtype=torch.float32).to(DEVICE)
    moments = torch.arange(7, dtype=torch.bfloat16).to(DEVICE)
    offloaded = torch.arange(3, dtype=torch.float32)
    found, buffers, saver = [], [], Saver(folder, 5, None, print)
    for step in (1, 2):
        pieces = [
            Piece("param/w", (5,), 0, weights),
            Piece("exp_avg/m", (7,), 0, moments),
            Piece("param/o", (3,), 0, offloaded),
        ]
        counts.begin()
        saver.start(step, pieces, {"progress": {}, "recipe": {}})
        if step == 1:
            saver.hold()
        counted = counts.end()
        found.append({kind: sum(places.values()) for kind, places in counted.items() if places})
        for tensor in (weights, moments, offloaded):
            tensor.add_(100)
        saver.hold()
        saver.look(wait=True)
        buffers.append(saver._copy._buffer.data_ptr())
    return {"asked": found, "one buffer": len(set(buffers)) == 1}


if __name__ == "__main__":
    runtime.install()
    with emulated():
        json.dump(save(Path(sys.argv[1])), sys.stdout)
