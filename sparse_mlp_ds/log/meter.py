"""Figures that add up between two log steps, and are summed over ranks when they are read."""

import time
from typing import Any

import torch
from torch import Tensor

from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.moe import stats
from sparse_mlp_ds.moe.stats import Reports

ITEMS = "items"
"""Last part of the name under which a record lists how often each expert of an MoE layer was chosen."""


class Meter:
    """Sums losses, expert statistics and waiting time; `read` turns the sums into the figures of a record."""

    def __init__(self, top_k: dict[str, int], samples: str = "images"):
        """Start with empty sums.

        Args:
            top_k: Experts chosen per item, by mixing type (`moe_s`, `moe_c`).
            samples: What the samples are called: `images` or `sequences`.
        """
        self.top_k, self.samples = top_k, samples
        self.items: dict[str, list[int]] = {}
        """How often each expert was chosen between the last two readings, by MoE layer; sums over all ranks."""
        self.further = torch.zeros(0)
        """What came with the last reading besides, on the host."""
        self._reset()

    def add(self, loss: Tensor, reports: Reports, samples: int) -> None:
        """Count one micro-batch.

        loss: scalar objective without balance losses. reports: of the MoE layers. samples: of this rank.
        """
        self._losses.append(samples * loss.detach().float())
        self._samples += samples
        if reports:
            balance = torch.stack([report.balance.detach().float() for report in reports.values()]).sum()
            self._balance.append(samples * balance)
        for name, report in reports.items():
            self._moe.setdefault(name, []).append(report.sums)

    def wait(self, seconds: float) -> None:
        """Count time that was spent waiting for data."""
        self._waited += seconds

    def leave_out(self, seconds: float) -> None:
        """Leave time out of the samples per second: a validation's."""
        self._since += seconds

    def read(self, further: Tensor | None = None) -> dict[str, Any]:
        """Return the figures since the last reading, and start with empty sums.

        further: [n] float32, whose sums over all ranks are `further` afterwards.

        The figures are the mean losses, samples per second, the share of time spent waiting for data, and of each MoE
        layer its figures and, as a list, how often each expert was chosen. Collective: one all-reduce and one wait for
        the device, however many layers there are.
        """
        seconds = time.perf_counter() - self._since
        losses = torch.stack(self._losses).sum().view(1)
        balance_losses = torch.stack(self._balance).sum().view(1) if self._balance else torch.zeros_like(losses)
        own = [losses, balance_losses, torch.tensor([self._samples, self._waited / seconds], device=losses.device)]
        moe = {name: torch.stack(parts).sum(dim=0) for name, parts in self._moe.items()}
        rest = [] if further is None else [further]
        sums = comm.all_reduce(torch.cat([*own, *moe.values(), *rest])).cpu()
        loss, balance, samples, waited = sums[:4].tolist()
        figures: dict[str, Any] = {
            "loss": loss / samples,
            "balance_loss": balance / samples,
            f"{self.samples}_per_second": samples / seconds,
            "data_wait": waited / process_group.world_size(),
        }
        start = 4
        for name, own_sums in moe.items():
            end = start + len(own_sums)
            layer = stats.read(sums[start:end], self.top_k[name.rpartition(".")[2]])
            self.items[name] = sums[start : end - 3].long().tolist()
            figures |= {f"moe/{name}/{key}": value for key, value in layer.items()}
            figures[f"moe/{name}/{ITEMS}"] = self.items[name]
            start = end
        self.further = sums[start:]
        self._reset()
        return figures

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._balance: list[Tensor] = []
        self._moe: dict[str, list[Tensor]] = {}
        self._samples, self._waited = 0, 0.0
        self._since = time.perf_counter()
