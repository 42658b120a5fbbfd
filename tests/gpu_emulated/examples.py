"""Small programs on the emulated device, and what comes of each: `refused`, or what was counted.

python -m tests.gpu_emulated.examples     prints JSON: name -> outcome
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu_emulated import runtime
from tests.gpu_emulated.counts import counts
from tests.gpu_emulated.device import DEVICE, RefusedError, emulated


def on_device(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device=DEVICE)


def page_locked_copy() -> None:
    torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)


def assign_a_cpu_tensor() -> None:
    on_device(3).data = torch.ones(3)


def grouped_rows_behind_the_last_expert() -> None:
    rows, weights = on_device(8, 8).bfloat16(), on_device(2, 8, 8).bfloat16()
    ends = torch.tensor([2, 5], dtype=torch.int32, device=DEVICE)
    result = torch.nn.functional.grouped_mm(rows, weights, offs=ends).cpu()
    assert result[:5].isfinite().all() and result[5:].isnan().all()


def gradients_reach_the_device() -> None:
    weight = on_device(3).requires_grad_()
    (weight * 2).sum().backward()
    assert weight.grad is not None and weight.grad.device == DEVICE and weight.grad.tolist() == [2, 2, 2]


EXAMPLES: dict[str, Callable[[], Any]] = {
    "add a CPU tensor": lambda: on_device(3) + torch.ones(3),
    "multiply by a CPU number": lambda: on_device(3) * torch.tensor(2.0),
    "product with a CPU matrix": lambda: on_device(3, 3) @ torch.ones(3, 3),
    "write into a CPU number": lambda: torch.tensor(1.0).add_(on_device(1)[0]),
    "to numpy": lambda: on_device(3).numpy(),
    "random numbers of a CPU generator": lambda: on_device(3).uniform_(generator=torch.Generator()),
    "assign a CPU tensor": assign_a_cpu_tensor,
    "one operation": lambda: on_device(3),
    "a view": lambda: on_device(4).view(2, 2),
    "nothing to compute": lambda: on_device(0) * 2,
    "item": lambda: on_device(1).item(),
    "tolist": lambda: on_device(3).tolist(),
    "if": lambda: bool(on_device(1) > 0),
    "index by a mask": lambda: on_device(3)[on_device(3) > 0],
    "fill by a mask": lambda: on_device(3).__setitem__(on_device(3) > 0, 0.0),
    "nonzero": lambda: on_device(3).nonzero(),
    "repeat by counts": lambda: torch.ones(2, dtype=torch.int64, device=DEVICE).repeat_interleave(
        torch.ones(2, dtype=torch.int64, device=DEVICE)
    ),
    "make from a list": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "pageable copy": lambda: torch.ones(3).to(DEVICE, non_blocking=True),
    "page-locked copy": page_locked_copy,
    "copy back": lambda: on_device(3).cpu(),
    "rows behind the last expert are not written": grouped_rows_behind_the_last_expert,
    "gradients reach the device": gradients_reach_the_device,
}


def outcome(example: Callable[[], Any]) -> Any:
    """Run an example; return `refused`, or kind -> number for what was counted."""
    counts.begin()
    try:
        example()
    except RefusedError:
        return "refused"
    finally:
        counted = counts.end()
    return {kind: sum(places.values()) for kind, places in counted.items() if places}


if __name__ == "__main__":
    runtime.install()
    with emulated():
        json.dump({name: outcome(example) for name, example in EXAMPLES.items()}, sys.stdout)
