"""Throughput of the loader, compared with a bare loop of the same work and with the usual WebDataset pipeline.

`python -m benchmarks.data --data FOLDER` takes any ImageNet tars. The three alternate within one run; every rate is
images per second over all processes.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table

from sparse_mlp_ds.data import augment, loader
from sparse_mlp_ds.data.config import Blur, Jitter, View
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import Part, TrainingOrder, micro_batches
from sparse_mlp_ds.distributed import host, process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.shards import scan

SIZE, CLASSES, BATCH = 224, 1000, 20
VIEW = View(jitter=Jitter(), grayscale=0.2, blur=Blur(p=0.5), solarize=0.2)  # about the mean of MoCo v3's two


def main() -> None:
    """Measure and print rates, ratios, waiting and the order's cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of ImageNet tars")
    parser.add_argument("--images", type=int, default=600, help="per measurement (600)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    host.keep_freed_memory()  # as every rank without a GPU does
    index = Index(str(args.data), [str(n) for n in range(CLASSES)], [scan.scan(p) for p in args.data.glob("*.tar")])
    rows = [_rates(index, args.data, workers, args.images, args.rounds) for workers in (1, 2)]
    result = {"rates": rows, "data_wait": _data_wait(index), "first_batch_seconds": _first_batch(index)}
    result |= _order()
    if args.json:
        print(json.dumps(result))
        return
    ratios = ("loader / bare", "quartiles", "with augmentation", "usual", "ours / usual", "quartiles")
    table = Table("workers", "bare loop", "loader", *ratios)
    for row in rows:
        table.add_row(
            str(row["workers"]), *(f"{row[k]:.0f}" for k in ("bare", "loader")), *row["loader_over_bare"],
            *(f"{row[k]:.0f}" for k in ("augmented", "usual")), *row["augmented_over_usual"],
        )  # fmt: skip
    Console(width=130).print(table)
    device, share = process_group.device().type, 100 * result["data_wait"]
    print(f"data wait of a training step of Sparse-S on {device}: {share:.2f} %")
    print(f"first batch of {BATCH} at 90 % of an epoch, loader process started: {result['first_batch_seconds']:.2f} s")
    print(
        f"order of 1.28 M samples for 1,024 ranks: {result['order_rank_seconds']:.2f} s and {result['order_mib']:.0f} "
        f"MiB for one rank's epoch, {result['order_all_seconds']:.2f} s for all ranks' in one process"
    )


def _rates(index: Index, folder: Path, workers: int, images: int, rounds: int) -> dict:
    order, steps = _order_of(index), range(images // BATCH)
    dataset = loader.ShardDataset(index, SIZE, CLASSES, (VIEW,), 0, order)
    slots = lambda: micro_batches(order, steps, range(BATCH))  # noqa: E731

    def ours(device_work: Callable) -> float:
        # The threads that the loader processes leave free: without a GPU they share the cores with the "device".
        torch.set_num_threads(max((os.cpu_count() or 1) - workers, 1))
        batches = loader.load(dataset, slots(), workers)
        next(batches)  # the processes are up
        started = time.perf_counter()
        for batch in batches:
            device_work(batch)
        return (images - BATCH) / (time.perf_counter() - started)

    runs = {
        "bare": lambda: _bare(dataset, list(slots()), workers),
        "loader": lambda: ours(lambda batch: batch.inputs),
        "augmented": lambda: ours(lambda batch: augment.views(batch.to(process_group.device()), (VIEW,), 0)),
        "usual": lambda: _usual(folder, images, workers),
    }
    rates = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % 4 :] + names[: number % 4]:  # so that none always follows the same one
            rates[name].append(runs[name]())
    row = {"workers": workers} | {name: statistics.median(values) for name, values in rates.items()}
    row["loader_over_bare"] = _ratio(rates["loader"], rates["bare"])
    row["augmented_over_usual"] = _ratio(rates["augmented"], rates["usual"])
    return row


def _ratio(above: list[float], below: list[float]) -> tuple[str, str]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return f"{median:.2f}", f"{lower:.2f} .. {upper:.2f}"


def _bare(dataset: loader.ShardDataset, slots: list, workers: int) -> float:
    """Return the rate of as many processes that only read, decode and crop the same images."""
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(workers + 1), context.Queue()

    def work(part: list) -> None:
        torch.set_num_threads(1)
        dataset[part[0]]
        ready.wait()
        for slot in part[1:]:
            dataset[slot]
        results.put(sum(len(slot.samples) for slot in part[1:]))

    processes = [context.Process(target=work, args=(slots[n::workers],)) for n in range(workers)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    images = sum(results.get() for _ in processes)
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    return images / seconds


def _usual(folder: Path, images: int, workers: int) -> float:
    """Return the rate of the usual pipeline: webdataset, whole decoding by Pillow, every operation per sample there."""
    import webdataset

    draw = np.random.default_rng(0)
    tars = sorted(str(path) for path in folder.glob("*.tar")) * 64
    pipeline = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None, empty_check=False)
    pipeline = pipeline.shuffle(50).to_tuple("jpg", "cls").map_tuple(lambda content: _pillow(content, draw), int)
    batches = iter(webdataset.WebLoader(pipeline.batched(BATCH), batch_size=None, num_workers=workers))
    next(batches)
    started = time.perf_counter()
    done = 0
    while done < images - BATCH:
        done += len(next(batches)[1])
    return done / (time.perf_counter() - started)


def _pillow(content: bytes, draw: np.random.Generator) -> np.ndarray:
    """Decode and augment one sample as torchvision's transforms do on Pillow images: [3, size, size] float32."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    box = _random_box(image.size, draw)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    jitter = VIEW.jitter
    if draw.random() < jitter.p:
        for enhance, strength in (
            (ImageEnhance.Brightness, jitter.brightness),
            (ImageEnhance.Contrast, jitter.contrast),
            (ImageEnhance.Color, jitter.saturation),
        ):
            image = enhance(image).enhance(1 + draw.uniform(-strength, strength))
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue).astype(int) + int(255 * draw.uniform(-jitter.hue, jitter.hue))).astype(np.uint8)
        image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
    if draw.random() < VIEW.grayscale:
        image = image.convert("L").convert("RGB")
    if draw.random() < VIEW.blur.p:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(*VIEW.blur.sigma)))
    if draw.random() < VIEW.solarize:
        image = ImageOps.solarize(image)
    if draw.random() < 0.5:
        image = ImageOps.mirror(image)
    return np.asarray(image).transpose(2, 0, 1).astype(np.float32) / 255


def _random_box(size: tuple[int, int], draw: np.random.Generator) -> tuple:
    from sparse_mlp_ds.data.decode import random_box

    return random_box(size, VIEW, 0, int(draw.integers(2**31)), 0)


def _data_wait(index: Index) -> float:
    """Return the share of a training step that waits for data: Sparse-S, 16 images, one loader process."""
    device, order = process_group.device(), _order_of(index, 16)
    model = registry.build(registry.preset("sparse_mlp_s16"), CLASSES).to(device)
    init_weights(model, 0)
    dataset = loader.ShardDataset(index, SIZE, CLASSES, (VIEW,), 0, order)
    batches = loader.load(dataset, micro_batches(order, range(8), range(16)), 1)
    waited, started = 0.0, 0.0
    for step in range(7):
        if step == 2:
            waited, started = 0.0, time.perf_counter()
        before = time.perf_counter()
        batch = next(batches).to(device)
        waited += time.perf_counter() - before
        (images,), (keys,) = augment.views(batch, (VIEW,), 0)
        logits, reports = model(images, keys)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels) + sum(r.balance for r in reports.values())
        loss.backward()
        model.zero_grad()
    return waited / (time.perf_counter() - started)


def _first_batch(index: Index) -> float:
    """Return the seconds from the start of the loader to its first batch, at 90 % of an epoch."""
    order = _order_of(index)
    step = int(0.9 * order.steps_per_epoch)
    started = time.perf_counter()
    dataset = loader.ShardDataset(index, SIZE, CLASSES, (VIEW,), 0, order)
    next(loader.load(dataset, micro_batches(order, range(step, step + 1), range(BATCH)), 1))
    return time.perf_counter() - started


def _order() -> dict[str, float]:
    """Return the seconds and MiB that ImageNet's order takes on 1,024 ranks with 4 images each.

    The data set has 1,281 tars of 1,000 images and one of 167.
    """
    shards = (1000,) * 1281 + (167,)

    def seconds(ranks: range) -> float:
        order = TrainingOrder((Part(shards, sum(shards)),), 4096, 0)
        started = time.perf_counter()
        for rank in ranks:
            for _ in micro_batches(order, range(order.steps_per_epoch), range(4 * rank, 4 * rank + 4)):
                pass
        return time.perf_counter() - started

    tracemalloc.start()
    seconds(range(1))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return {"order_rank_seconds": seconds(range(1)), "order_all_seconds": seconds(range(1024)), "order_mib": peak}


def _order_of(index: Index, batch: int = BATCH) -> TrainingOrder:
    return TrainingOrder((Part(tuple(len(shard) for shard in index.shards), len(index)),), batch, 0)


if __name__ == "__main__":
    main()
