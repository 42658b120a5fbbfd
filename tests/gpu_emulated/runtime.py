"""What `torch.cuda` answers where a Hopper GPU is emulated: one device per rank.

Variables of the environment make it a different host: EMULATED_CAPABILITY is that of its GPUs, such as 7.5;
EMULATED_DEVICES the number of GPUs that every rank sees; EMULATED_SHARED says that all ranks see the same one.
`install()` changes torch for good, in this process, and comes before DeepSpeed is imported.
"""

import contextlib
import os
import uuid
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils import _foreach_utils

from tests.gpu_emulated import streams
from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import EmulatedTensor, is_page_locked, lock_pages

CAPABILITY = tuple(map(int, os.environ.get("EMULATED_CAPABILITY", "9.0").split(".")))
DEVICES = int(os.environ.get("EMULATED_DEVICES", "1"))
SHARED = "EMULATED_SHARED" in os.environ
MEMORY = 80 * 2**30


def properties(device: Any = None) -> SimpleNamespace:
    """Return what is known of the device; every rank has one of its own."""
    own = uuid.uuid5(uuid.NAMESPACE_OID, "" if SHARED else os.environ.get("LOCAL_RANK", "0"))
    major, minor = CAPABILITY
    return SimpleNamespace(name="emulated GPU", uuid=own, total_memory=MEMORY, major=major, minor=minor)


def install() -> None:
    """Let `torch.cuda` speak of an emulated GPU, and optimizers treat its tensors as CUDA's."""
    os.environ["DS_ACCELERATOR"] = "cuda"
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "current_device")
    nothing = (
        "set_device", "_lazy_init", "empty_cache", "reset_peak_memory_stats", "reset_max_memory_allocated",
        "reset_max_memory_cached", "manual_seed", "manual_seed_all", "set_rng_state",
    )  # fmt: skip
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: DEVICES,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: properties().name,
        "get_device_properties": properties,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "memory_stats": lambda device=None: {},
        "device": lambda device=None: contextlib.nullcontext(),
        "stream": streams.inside,
        "current_stream": streams.present,
        "default_stream": lambda device=None: streams.DEFAULT,
        "synchronize": lambda device=None: counts.add("synchronisations"),
        "Stream": streams.Stream,
        "Event": streams.Event,
    }
    answers |= {name: lambda *args, **kwargs: 0 for name in zero}
    answers |= {name: lambda *args, **kwargs: None for name in nothing}
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name in ("range_push", "range_pop"):
        setattr(torch.cuda.nvtx, name, lambda *args, **kwargs: None)
    torch.Tensor.pin_memory = _pin_memory
    torch.Tensor.is_pinned = lambda self, device=None: is_page_locked(self)
    torch.nn.Module._apply = _keeping_parameters(torch.nn.Module._apply)
    for types in (torch_optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        types.append(EmulatedTensor)


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """Return a copy that counts as page-locked: copies from it to the device need not wait."""
    return lock_pages(tensor.detach().clone())


def _keeping_parameters(apply: Any) -> Any:
    """On CUDA a parameter that moves to the device remains the object it was, with all its attributes."""

    def applied(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        before = dict(module._parameters)
        result = apply(module, *args, **kwargs)
        for name, moved in module._parameters.items():
            old = before[name]
            if moved is not None and old is not None and moved is not old:
                vars(moved).update({key: value for key, value in vars(old).items() if key != "held"})
        return result

    return applied
