"""How much of its GPU a stage uses: memory, and model FLOPs utilisation (MFU)."""

import re

import torch

from sparse_mlp_ds.config.stages import Pretrain, Probe
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.train.job import Job

PEAKS = {
    r"H100 PCIe": (756, 51),
    r"H[12]00": (989, 67),
    r"A100": (312, 19.5),
    r"V100": (125, 15.7),
    r"T4": (65, 8.1),
    r"L4": (121, 30.3),
    r"L40S": (362, 91.6),
    r"A40": (149.7, 37.4),
    r"A10": (125, 31.2),
}
"""Part of a GPU's name -> 10^12 operations per second at its peak in 16-bit matrix products and in float32, from
NVIDIA's data sheets, without sparsity. The first name that fits counts."""
PASSES: dict[type, int] = {Pretrain: 8, Probe: 1}
"""Forward passes of one image that a stage's work amounts to; a backward pass counts as two. MoCo v3 has two views,
each of which passes the network forward and back and the momentum encoder forward."""
PASSES_OF_LABELS = 3
"""The same for stages that train a classifier."""


def peak(name: str, precision: str) -> float | None:
    """Return the peak of a GPU in operations per second; None for one that PEAKS does not name.

    Args:
        name: Of the GPU, as CUDA gives it.
        precision: `float32`, `bf16` or `fp16`; V100 and T4 have no bf16.
    """
    for part, (half, single) in PEAKS.items():
        if re.search(rf"\b{part}\b", name):
            return 1e12 * (single if precision == "float32" else half)
    return None


class DeviceUse:
    """What a log record says of this rank's GPU; nothing on a CPU."""

    def __init__(self, job: Job, name: str):
        """Count what one image costs. name: the stage's name."""
        self._device = process_group.device()
        self._share_of_peak = 0.0  # that one image per second uses, of the peak of all ranks
        if self._device.type != "cuda":
            return
        if top := peak(torch.cuda.get_device_name(self._device), job.ds_config.precision):
            passes = PASSES.get(type(job.recipe.stages[name]), PASSES_OF_LABELS)
            self._share_of_peak = 2 * cost.cost(job.recipe.spec).macs * passes / (top * job.world)

    def figures(self, images_per_second: float) -> dict[str, float]:
        """Return the most memory that this rank's GPU gave so far, in GiB, and the MFU as a share in [0, 1].

        MFU counts the operations of the model's forward and backward passes, without heads, a teacher, passes that are
        repeated to save memory, and the optimizer. It is left out if the GPU's peak is not known. The device is not
        waited for.
        """
        if self._device.type != "cuda":
            return {}
        figures = {"gpu/memory_gib": torch.cuda.max_memory_reserved(self._device) / 2**30}
        return figures | ({"gpu/mfu": self._share_of_peak * images_per_second} if self._share_of_peak else {})
