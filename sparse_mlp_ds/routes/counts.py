"""Counts of what the experts got, summed over images and ranks: whole numbers, the same however images are spread.

Letters as in `moe.routes`: B images, T items per image, E experts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log

import torch
from torch import Tensor

from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.moe.routes import Choices, Routes
from sparse_mlp_ds.routes.layers import Layer

BINS = 20
"""Steps of the histogram of gate entropies."""
TOP = 6
"""Images that are kept of each expert."""


@dataclass(frozen=True)
class Sent:
    """Where one layer sent the items of B images."""

    took: Tensor
    """[B, T, E] int64: 1 where the expert got the item."""
    weight: Tensor
    """[B, T, E] float32: the gate weight of these, 0 elsewhere."""
    entropy: Tensor
    """[B, T] float32: entropy of the gate over log E."""

    @property
    def first(self) -> Tensor:
        """[B, T] int64: the expert with the largest gate weight of those that got the item, -1 if none did."""
        return torch.where(self.took.any(dim=2), (self.weight + self.took).argmax(dim=2), -1)


def sent(choices: Choices, routes: Routes, images: int, layer: Layer) -> Sent:
    """Return where the items of a pass went, without those of tokens before the patches."""
    routes, experts = routes.kept(), layer.experts
    expert = torch.arange(experts, device=routes.item.device).repeat_interleave(routes.counts)
    place = routes.item * experts + expert
    took, weight = (
        torch.zeros(len(choices.logits) * experts, dtype=values.dtype, device=values.device)
        .index_put((place,), values)
        .view(images, -1, experts)[:, layer.tokens :]
        for values in (torch.ones_like(place), routes.weight.float())
    )
    log_p = choices.logits.float().log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1) / log(max(experts, 2))
    return Sent(took, weight, entropy.view(images, -1)[:, layer.tokens :])


class RouteCounts:
    """Counts of all MoE layers of a model; after `reduce`, they are those of all ranks."""

    def __init__(self, layers: Sequence[Layer], classes: int, shown: Iterable[int]):
        """Start at zero.

        Args:
            layers: The MoE layers.
            classes: Number of classes.
            shown: Numbers of the images whose patches' experts are kept one by one, where patches are routed.
        """
        self.layers, self.classes, self.shown = layers, classes, set(shown)
        device = process_group.device()
        zeros = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=device)  # noqa: E731
        self.images = zeros(1)
        self.by_class = [zeros(classes, layer.experts) for layer in layers]
        """[classes, E] of each layer."""
        self.by_item = [zeros(layer.items, layer.experts) for layer in layers]
        """[T, E] of each layer."""
        self.entropy = [zeros(layer.items) for layer in layers]
        """[T] of each layer: sums over images."""
        self.histogram = [zeros(BINS) for _ in layers]
        """[BINS] of each layer."""
        self.loads = zeros(sum(layer.experts for layer in layers))
        """All layers' experts one after the other: their items."""
        self.products = zeros(len(self.loads), len(self.loads))
        """Sum over images of the products of two experts' items."""
        pairs = [(a, b) for a, b in combinations(range(len(layers)), 2) if layers[a].same_items(layers[b])]
        self.pairs = {(a, b): zeros(layers[a].experts, layers[b].experts) for a, b in pairs}
        """[E, E] of two layers with the same items: items by their first choices in both."""
        self.top: list[list[list[tuple[int, float, int]]]] = [[[] for _ in range(layer.experts)] for layer in layers]
        """[layers][E]: items, weight and number of the images that send the expert most."""
        self.of_patch: list[dict[int, list[int]]] = [{} for _ in layers]
        """[layers]: image -> first choice of each patch."""

    def add(self, where: Sequence[Sent], labels: Tensor, numbers: Tensor) -> None:
        """Count a batch.

        Args:
            where: Of each layer, where it sent the items of the B images.
            labels: [B] int64, number of each image's class.
            numbers: [B] int64, number of each image; those of -1 are not counted.
        """
        real = numbers >= 0
        labels, numbers = labels[real], numbers[real]
        if not len(numbers):  # a rank whose share of the last batch is padding
            return
        self.images += len(numbers)
        loads, firsts = [], []
        for number, one in enumerate(where):
            took, weight, entropy = one.took[real], one.weight[real], one.entropy[real]
            load = took.sum(dim=1).double()  # [B, E]
            self.by_class[number].index_add_(0, labels, load)
            self.by_item[number] += took.sum(dim=0)
            self.entropy[number] += entropy.sum(dim=0, dtype=torch.float64)
            bins = (entropy.flatten() * BINS).long().clamp(0, BINS - 1)
            self.histogram[number] += torch.bincount(bins, minlength=BINS)
            self._keep_top(number, load, weight.sum(dim=1), numbers)
            loads.append(load)
            firsts.append(one.first[real])
            self._keep_shown(number, firsts[-1], numbers)
        together = torch.cat(loads, dim=1)
        self.loads += together.sum(dim=0)
        self.products += together.T @ together
        for (a, b), table in self.pairs.items():
            both = (firsts[a] >= 0) & (firsts[b] >= 0)
            place = firsts[a][both] * table.shape[1] + firsts[b][both]
            table += torch.bincount(place, minlength=table.numel()).view_as(table)

    def _keep_top(self, layer: int, load: Tensor, weight: Tensor, numbers: Tensor) -> None:
        """Keep the images with the most items of each expert; of equals those with more weight, then the first.

        load, weight: [B, E] items and their weights. numbers: [B].
        """
        kept = min(TOP, len(numbers))
        # Weights are at most 1, so that they only decide between equal numbers of items.
        score = load + weight / (weight.max() + 1)
        best = score.sort(dim=0, descending=True, stable=True).indices[:kept]  # [kept, E]
        rows = zip(load.gather(0, best).T.tolist(), weight.gather(0, best).T.tolist(), numbers[best].T.tolist(),
                   strict=True)  # fmt: skip
        for expert, (items, weights, images) in enumerate(rows):
            found = [(int(n), round(w, 4), image) for n, w, image in zip(items, weights, images, strict=True) if n]
            self.top[layer][expert] = _best([*self.top[layer][expert], *found])

    def _keep_shown(self, layer: int, first: Tensor, numbers: Tensor) -> None:
        if self.layers[layer].on_grid and self.shown:
            for row, number in enumerate(numbers.tolist()):
                if number in self.shown:
                    self.of_patch[layer][number] = first[row].tolist()

    def reduce(self) -> "RouteCounts":
        """Add up the counts of all ranks, and return self. Collective."""
        tensors = list(self._tensors())
        flat = comm.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))
        for top, of_patch in comm.gather_objects((self.top, self.of_patch)):
            for layer in range(len(self.layers)):
                self.of_patch[layer] |= of_patch[layer]
                for expert, found in enumerate(top[layer]):
                    self.top[layer][expert] = _best(list({*self.top[layer][expert], *found}))
        return self

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.images, self.loads, self.products)
        for tensors in (self.by_class, self.by_item, self.entropy, self.histogram, self.pairs.values()):
            yield from tensors


def _best(found: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    return sorted(found, key=lambda one: (-one[0], -one[1], one[2]))[:TOP]


@torch.no_grad()
def count(
    backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor, Tensor]], layers: Sequence[Layer], classes: int,
    shown: Iterable[int],
) -> RouteCounts:  # fmt: skip
    """Send images through a model, and return the counts of all ranks. Collective.

    Args:
        backbone: The model.
        batches: Normalised images [B, 3, H, W], their labels and numbers; the same number of batches on every rank.
        layers: The model's MoE layers.
        classes: Number of classes.
        shown: See `RouteCounts`.
    """
    counts = RouteCounts(layers, classes, shown)
    for images, labels, numbers in batches:
        reports = backbone.forward_features(images)[1]
        where = []
        for layer in layers:
            decided = reports[layer.name].decided
            assert decided is not None
            where.append(sent(*decided, len(images), layer))
        counts.add(where, labels, numbers)
    return counts.reduce()
