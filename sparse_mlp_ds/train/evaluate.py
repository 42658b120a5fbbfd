"""Exact evaluation: every held-out image counts once, on any number of ranks."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds import dist
from sparse_mlp_ds.data import augment, loader, sources
from sparse_mlp_ds.data.defects import BadCount
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import evaluation_batches
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.recipe import Data

Forward = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] -> logits or features [B, D]; called equally often on every rank."""


@torch.no_grad()
def top_k_accuracy(forward: Forward, index: Index, data: Data, size: int, batch_size: int) -> dict[str, float]:
    """Return `top1` and `top5`, shares in [0, 1] of the index's images, each counted once, and their number `images`.

    size: side of the images, pixels. batch_size: images per forward pass over all ranks. Images that cannot be decoded
    are not counted, but named; too many of them raise UserError.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=dist.device())  # images, top-1 hits, top-5 hits
    bad = BadCount(data.bad_limit, len(index))
    for images, labels, numbers in _batches(index, data, size, batch_size, bad):
        logits = forward(images)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [B, 5]
        real = numbers >= 0  # padding is masked
        counts += torch.stack([real.sum(), (ranked[:, 0] & real).sum(), (ranked.any(dim=1) & real).sum()])
    total, top1, top5 = dist.all_reduce(counts).tolist()
    missing = sum(bad.read().values())
    if total + missing != len(index):
        raise RuntimeError(f"evaluated {total} images of {len(index)}, {missing} of which are bad")
    for one in bad.found:
        say(f"not counted: {one}")
    return {"top1": top1 / total, "top5": top5 / total, "images": total}


@torch.no_grad()
def knn_accuracy(
    forward: Forward,
    train: Index,
    val: Index,
    data: Data,
    size: int,
    batch_size: int,
    k: int,
    temperature: float = 0.07,
) -> float:
    """Return the top-1 share of a weighted k-NN classifier on features (Wu et al., 2018, 3.4).

    Each held-out image is named by its k nearest training images by cosine similarity s, voting exp(s / temperature).
    """
    bank, bank_labels = _features(forward, train, data, size, batch_size)
    queries, labels = _features(forward, val, data, size, batch_size)
    hits = 0
    for query, label in zip(queries.split(1024), labels.split(1024), strict=True):
        similarity, nearest = (query @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(query), data.classes, device=query.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        hits += int((votes.argmax(dim=1) == label).sum())
    return hits / len(queries)


def _features(forward: Forward, index: Index, data: Data, size: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return unit features [N, D] and labels [N] of all images, on every rank."""
    features, labels = [], []
    bad = BadCount(data.bad_limit, len(index))
    for images, batch_labels, numbers in _batches(index, data, size, batch_size, bad):
        real = dist.all_gather(numbers) >= 0
        features.append(dist.all_gather(F.normalize(forward(images).float(), dim=1))[real])
        labels.append(dist.all_gather(batch_labels)[real])
    bad.read()
    return torch.cat(features), torch.cat(labels)


def _batches(
    index: Index, data: Data, size: int, batch_size: int, bad: BadCount
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this rank's normalised images, labels and numbers; the same number of batches on every rank."""
    share = max(batch_size // dist.world_size(), 1)
    slots = evaluation_batches(len(index), dist.rank(), dist.world_size(), share)
    dataset = loader.ShardDataset(
        index, size, data.classes, crop_fraction=data.crop_fraction, cache=sources.cache(data)
    )
    for batch in loader.load(dataset, slots, data.workers):
        bad.add(batch.bad, epoch=0)
        batch = batch.to(dist.device())
        yield augment.normalize(augment.to_unit(batch.images[:, 0]), data), batch.labels, batch.numbers
