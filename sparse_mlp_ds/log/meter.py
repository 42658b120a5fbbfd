"""What accumulates between two log steps, summed over ranks when it is read."""

import time

import torch
from torch import Tensor

from sparse_mlp_ds import dist
from sparse_mlp_ds.moe import stats
from sparse_mlp_ds.moe.stats import Reports


class Meter:
    """Sums losses, expert statistics and waiting time; `read` turns them into the figures of a record."""

    def __init__(self, top_k: dict[str, int]):
        """top_k: choices per item, by mixing type (`moe_s`, `moe_c`)."""
        self.top_k = top_k
        self.items: dict[str, list[int]] = {}
        """Choices per expert of each MoE layer, between the last two readings."""
        self._reset()

    def add(self, loss: Tensor, reports: Reports, images: int) -> None:
        """Count one micro-batch. loss: scalar objective without balance losses; images: of this rank."""
        self._losses.append(images * loss.detach().float())
        self._images += images
        balance = sum(r.balance.detach().float() for r in reports.values()) + torch.zeros((), device=loss.device)
        self._balance.append(images * balance)
        for name, report in reports.items():
            self._moe[name] = self._moe.get(name, 0) + report.sums

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def read(self) -> dict[str, float]:
        """Return mean loss, throughput, share of time spent waiting, and each MoE layer's figures; start anew.

        Collective: one all-reduce, whatever the number of layers.
        """
        seconds = time.perf_counter() - self._since
        own = [torch.stack(self._losses).sum().view(1), torch.stack(self._balance).sum().view(1)]
        own.append(torch.tensor([self._images, self._waited / seconds], device=own[0].device))
        sums = dist.all_reduce(torch.cat([*own, *self._moe.values()]))
        loss, balance, images, waited = sums[:4].tolist()
        figures = {
            "loss": loss / images,
            "balance_loss": balance / images,
            "images_per_second": images / seconds,
            "data_wait": waited / dist.world_size(),
        }
        at = 4
        for name, mine in self._moe.items():
            layer = stats.read(sums[at : at + len(mine)].cpu(), self.top_k[name.rpartition(".")[2]])
            self.items[name] = sums[at : at + len(mine) - 3].long().tolist()
            figures |= {f"moe/{name}/{key}": value for key, value in layer.items()}
            at += len(mine)
        self._reset()
        return figures

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._balance: list[Tensor] = []
        self._moe: dict[str, Tensor] = {}
        self._images, self._waited = 0, 0.0
        self._since = time.perf_counter()
