"""Exact evaluation: every held-out image counts once, on any number of ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
BINS = 15
"""Of confidence, for the calibration error."""


@dataclass(frozen=True)
class Outcome:
    """What a classifier did with every image of an index, in counts."""

    confusion: Tensor
    """[classes, classes] int64: images of class r that were taken for class c."""
    in_five: int
    """Images whose class is among the five likeliest."""
    calibration: Tensor
    """[bins, 3]: images, hits and summed confidence by confidence."""

    def metrics(self) -> dict[str, float]:
        """Return `top1` and `top5` in [0, 1], the number of `images`, and `ece`.

        That is the expected calibration error (Guo et al., 2017, eq. 3) over BINS bins.
        """
        images, hits, confidence = self.calibration.unbind(1)
        total = int(self.confusion.sum())
        ece = float((hits - confidence).abs().sum() / total)
        top1 = int(self.confusion.diagonal().sum()) / total
        return {"top1": top1, "top5": self.in_five / total, "ece": ece, "images": total}

    def per_class(self) -> list[float | None]:
        """Return each class's top-1, None where it has no image."""
        hits, images = self.confusion.diagonal().tolist(), self.confusion.sum(dim=1).tolist()
        return [hit / count if count else None for hit, count in zip(hits, images, strict=True)]


def top_k_accuracy(forward: Forward, index: Index, data: Data, size: int, batch_size: int) -> dict[str, float]:
    """Return the metrics of one classifier, see `outcomes`."""
    return outcomes(forward, index, data, size, batch_size)[0].metrics()


@torch.no_grad()
def outcomes(forward: Forward, index: Index, data: Data, size: int, batch_size: int) -> list[Outcome]:
    """Count what one or several classifiers do with the index's images, each once.

    forward: gives logits [B, classes], or [heads, B, classes] of several classifiers. size: side of the images, pixels.
    batch_size: images per forward pass over all ranks. Images that cannot be decoded are not counted, but named; too
    many of them raise UserError.
    """
    bad, sums = BadCount(data.bad_limit, len(index)), None
    for images, labels, numbers in _batches(index, data, size, batch_size, bad):
        logits = forward(images)
        logits = logits if logits.ndim == 3 else logits[None]
        real = numbers >= 0  # padding is masked
        counted = [_counts(one[real].float(), labels[real], data.classes) for one in logits]
        sums = counted if sums is None else [a + b for a, b in zip(sums, counted, strict=True)]
    results = [_outcome(dist.all_reduce(one), data.classes) for one in sums]
    total, missing = int(results[0].confusion.sum()), sum(bad.read().values())
    if total + missing != len(index):
        raise RuntimeError(f"evaluated {total} images of {len(index)}, {missing} of which are bad")
    for one in bad.found:
        say(f"not counted: {one}")
    return results


def _counts(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return one flat float64 vector, exact up to 2^53 images: confusion, hits among five, calibration."""
    confidence, guess = logits.softmax(dim=1).max(dim=1)
    confusion = torch.bincount(labels * classes + guess, minlength=classes**2)
    in_five = (logits.topk(min(5, classes), dim=1).indices == labels[:, None]).any(dim=1).sum().view(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = torch.zeros(BINS, 3, dtype=torch.float64, device=logits.device)
    bins.index_add_(0, place, torch.stack([torch.ones_like(confidence), guess == labels, confidence], dim=1).double())
    return torch.cat([confusion.double(), in_five.double(), bins.flatten()])


def _outcome(counts: Tensor, classes: int) -> Outcome:
    confusion, in_five, bins = counts.cpu().split([classes**2, 1, 3 * BINS])
    return Outcome(confusion.long().view(classes, classes), int(in_five), bins.view(BINS, 3))


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
