"""Exact evaluation: every held-out image counts exactly once, on any number of ranks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.data import augment, loader, loader_processes, sources
from sparse_mlp_ds.data.bad_samples import BadSampleCounter
from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import evaluation_batches
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.log import image_hits
from sparse_mlp_ds.log.console import say

Forward = Callable[[Tensor], Tensor]
"""A function from normalised images [B, 3, H, W], or tokens [B, n], to logits or features [B, D]; every rank calls it
equally often."""
BINS = 15
"""Number of confidence bins of the calibration error."""


@dataclass(frozen=True)
class Outcome:
    """How a classifier did on all images of an index, as counts."""

    confusion: Tensor
    """[classes, classes] int64: entry (r, c) is the number of images of class r that were classified as c."""
    in_five: int
    """Number of images whose class is among the five most likely ones."""
    calibration: Tensor
    """[bins, 3] float64: for each bin of confidence the number of images, of hits, and the sum of confidences."""
    undefined: int = 0
    """Number of images whose logits are not numbers (NaN); they count as misses of confidence 0."""
    loss: float = 0.0
    """Sum of the losses of the images whose logits are numbers."""
    samples: str = "images"
    """What the samples are called: `images` or `sequences`."""
    marks: Tensor | None = None
    """[images] uint8 on the host: `image_hits.RIGHT`, `WRONG` or `LEFT_OUT` of each image, in the index's order."""

    def metrics(self) -> dict[str, float]:
        """Return `top1`, `top5` and `ece` as shares in [0, 1], the mean `loss`, and the number of samples.

        `ece` is the expected calibration error (Guo et al., 2017, eq. 3) over BINS bins. `top5` is left out where it
        could be nothing but 1: with five classes or fewer.
        """
        images, hits, confidence = self.calibration.unbind(1)
        total = int(self.confusion.sum())
        ece = float((hits - confidence).abs().sum() / total)
        top1 = int(self.confusion.diagonal().sum()) / total
        top5 = {"top5": self.in_five / total} if len(self.confusion) > 5 else {}
        loss = self.loss / (total - self.undefined) if total > self.undefined else math.nan
        return {"top1": top1, **top5, "loss": loss, "ece": ece, self.samples: total}

    def per_class(self) -> list[float | None]:
        """Return the top-1 accuracy of each class; None for a class without images."""
        hits, images = self.confusion.diagonal().tolist(), self.confusion.sum(dim=1).tolist()
        return [hit / count if count else None for hit, count in zip(hits, images, strict=True)]


@torch.no_grad()
def outcomes(
    forward: Forward,
    index: Index,
    data: Data,
    size: int | None,
    batch_size: int,
    loss: str = "softmax",
    tell: bool = True,
) -> list[Outcome]:
    """Run one or several classifiers on an index's images, each image once, and return the counts of each classifier.

    Images that cannot be decoded are not counted but named; too many of them raise UserError. Collective.

    Args:
        forward: Returns logits [B, classes], or [heads, B, classes] of several classifiers.
        index: The images and their labels.
        data: The recipe's data section: classes, normalisation, loader processes, limit of bad samples.
        size: Side of the images, pixels; None for text.
        batch_size: Samples per forward pass, over all ranks.
        loss: `softmax` or `sigmoid`, as in a stage that trains a classifier; labels are not smoothed.
        tell: Whether to name the images that cannot be decoded.
    """
    bad, sums, marks = BadSampleCounter(data.bad_limit, len(index)), list[Tensor](), torch.empty(0)
    for inputs, labels, numbers in _batches(index, data, size, batch_size, bad):
        logits = forward(inputs)
        logits = logits if logits.ndim == 3 else logits[None]
        real = numbers >= 0  # padding is masked
        counted = [_counts(one[real].float(), labels[real], data.class_count, loss) for one in logits]
        if not sums:
            marks = torch.zeros(len(logits), len(index), dtype=torch.uint8, device=logits.device)
        sums = [a + b for a, b in zip(sums, counted, strict=True)] if sums else counted
        for own, one in zip(marks, logits, strict=True):
            hits = _guesses(one[real].float(), labels[real])[1] == labels[real]
            own[numbers[real]] = torch.where(hits, image_hits.RIGHT, image_hits.WRONG).to(torch.uint8)
    samples = "sequences" if index.text else "images"
    of_samples = comm.all_reduce(marks).cpu()  # each sample is one rank's, and 0 on all others
    results = [
        replace(_outcome(comm.all_reduce(one), data.class_count, samples), marks=own)
        for one, own in zip(sums, of_samples, strict=True)
    ]
    total, missing = int(results[0].confusion.sum()), sum(bad.read().values())
    if total + missing != len(index):
        raise RuntimeError(f"evaluated {total} {samples} of {len(index)}, {missing} of which are bad")
    if tell:
        _name_bad_samples(bad)
    if (undefined := max(result.undefined for result in results)) and process_group.rank() == 0:
        say(f"WARNING: the logits of {undefined} of {total} {samples} are not numbers (NaN); they count as misses")
    return results


def image_losses(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Return the loss of each image [B], without label smoothing. logits: [B, classes]. labels: [B]."""
    if loss == "sigmoid":
        targets = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)
    return F.cross_entropy(logits, labels, reduction="none")


def _name_bad_samples(bad: BadSampleCounter) -> None:
    for one in bad.in_epoch:
        say(f"not counted: {one}")


def _counts(logits: Tensor, labels: Tensor, classes: int, loss: str = "softmax") -> Tensor:
    """Return confusion, in five, undefined, summed loss and calibration as one flat float64 vector.

    Counts are exact up to 2^53 images.
    """
    confidence, guess, undefined = _guesses(logits, labels)
    confusion = torch.bincount(labels * classes + guess, minlength=classes**2)
    among_five = (logits.topk(min(5, classes), dim=1).indices == labels[:, None]).any(dim=1) & ~undefined
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = torch.zeros(BINS, 3, dtype=torch.float64, device=logits.device)
    bins.index_add_(0, place, torch.stack([torch.ones_like(confidence), guess == labels, confidence], dim=1).double())
    losses = image_losses(logits, labels, loss).double().masked_fill(undefined, 0)
    sums = torch.stack([among_five.sum(), undefined.sum(), losses.sum()])
    return torch.cat([confusion.double(), sums, bins.flatten()])


def _guesses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return confidence and most likely class of each image [B], and whether its logits are not numbers.

    Of such an image, the confidence is 0 and the class is not its own.
    """
    undefined = logits.isnan().any(dim=1)
    confidence, guess = logits.masked_fill(undefined[:, None], 0).softmax(dim=1).max(dim=1)
    guess = torch.where(undefined, (labels + 1) % logits.shape[1], guess)
    return confidence.masked_fill(undefined, 0), guess, undefined


def _outcome(counts: Tensor, classes: int, samples: str = "images") -> Outcome:
    confusion, sums, bins = counts.cpu().split([classes**2, 3, 3 * BINS])
    in_five, undefined, loss = sums.tolist()
    square, bins = confusion.long().view(classes, classes), bins.view(BINS, 3)
    return Outcome(square, int(in_five), bins, int(undefined), loss, samples)


@torch.no_grad()
def knn_accuracy(
    forward: Forward,
    train: Index,
    val: Index | None,
    data: Data,
    size: int | None,
    batch_size: int,
    k: int,
    temperature: float = 0.07,
) -> float:
    """Return the top-1 share of a weighted k-NN classifier on features (Wu et al., 2018, 3.4).

    Each held-out image gets the class for which its k nearest training images vote; a neighbour of cosine similarity s
    votes with weight exp(s / temperature). val: None classifies each training image by all others instead, and then
    every label that they have is a class.
    """
    if val is None:
        data = data.model_copy(update={"classes": max(int(shard.labels.max(initial=0)) for shard in train.shards) + 1})
    bank, bank_labels = _features(forward, train, data, size, batch_size)
    queries, labels = (bank, bank_labels) if val is None else _features(forward, val, data, size, batch_size)
    k = min(k, len(bank) - (val is None))
    hits = 0
    for first in range(0, len(queries), 1024):
        query, label = queries[first : first + 1024], labels[first : first + 1024]
        similarities = query @ bank.T
        if val is None:
            similarities.diagonal(first).fill_(-torch.inf)  # nobody is his own neighbour
        similarity, nearest = similarities.topk(k, dim=1)
        votes = torch.zeros(len(query), data.class_count, device=query.device)
        votes.scatter_add_(1, bank_labels[nearest], (similarity / temperature).exp())
        hits += int((votes.argmax(dim=1) == label).sum())
    return hits / len(queries)


def _features(forward: Forward, index: Index, data: Data, size: int | None, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return unit features [N, D] and labels [N] of all images, on every rank."""
    features, labels = [], []
    for images, batch_labels, numbers in batches(index, data, size, batch_size):
        real = comm.all_gather(numbers) >= 0
        features.append(comm.all_gather(F.normalize(forward(images).float(), dim=1))[real])
        labels.append(comm.all_gather(batch_labels)[real])
    return torch.cat(features), torch.cat(labels)


def batches(
    index: Index, data: Data, size: int | None, batch_size: int, tell: bool = True
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this rank's normalised images [B, 3, H, W] or tokens [B, n], labels [B] and numbers [B], the same number of
    batches on every rank; the number -1 marks padding and samples that cannot be decoded.

    After the last batch, the latter are named; too many of them raise UserError. Collective. The arguments are those of
    `outcomes`.
    """
    bad = BadSampleCounter(data.bad_limit, len(index))
    yield from _batches(index, data, size, batch_size, bad)
    bad.read()
    if tell:
        _name_bad_samples(bad)


def _batches(
    index: Index, data: Data, size: int | None, batch_size: int, bad: BadSampleCounter
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this rank's normalised images or tokens, labels and numbers; equally many batches on every rank."""
    share = max(batch_size // process_group.world_size(), 1)
    slots = evaluation_batches(len(index), process_group.rank(), process_group.world_size(), share)
    dataset = loader.ShardDataset(
        index, size, data.classes, crop_fraction=data.crop_fraction, cache=sources.cache(data)
    )
    for batch in loader.load(
        dataset, slots, loader_processes.processes(data.workers, process_group.local_world_size())
    ):
        bad.add(batch.bad_samples, epoch=0)
        batch = batch.to(process_group.device())
        inputs = batch.inputs if index.text else augment.normalize(augment.to_unit(batch.inputs[:, 0]), data)
        yield inputs, batch.labels, batch.numbers
