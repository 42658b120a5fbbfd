"""Writing shards: by many processes, on many nodes; a killed command goes on where it stopped.

Which image goes into which tar is a function of the images and the seed alone, so every process knows it. A tar appears
under its name when it is whole. Until the index is written, a file for each finished tar holds its entry of the index.
"""

import io
import itertools
import json
import multiprocessing
import os
import platform
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import reads
from sparse_mlp_ds.data.bad_samples import BadSampleError
from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import processes
from sparse_mlp_ds.shards.scan import scan
from sparse_mlp_ds.shards.split import RawImage, Split

WORK = ".making"
"""Folder for unfinished files, inside the folder that is written."""
Progress = Callable[[int, int], None]
"""Called with the number of finished tars and the number of all tars."""
Job = tuple[Path, str, list[RawImage], "Options"]
"""Arguments of `write_tar`."""


@dataclass(frozen=True)
class Options:
    """How tars are written."""

    per_shard: int = 10_000
    """Largest number of images in a tar."""
    resize: int | None = None
    """Shorter side, pixels, that larger images are scaled to; they become JPEGs. If None, files are copied as they
    are."""
    quality: int = 95
    """Quality of the JPEGs that scaled images become, 1 to 100."""
    seed: int = 0
    """Seed of the order in which images go into tars."""


@dataclass(frozen=True)
class Node:
    """One of several nodes that share the work, each of which writes some of the tars."""

    rank: int = 0
    """This node's number."""
    world: int = 1
    """Number of nodes."""
    barrier: Callable[[], None] = lambda: None
    """Returns when all nodes have called it."""


def write(
    folder: Path, name: str, split: Split, options: Options, workers: int, node: Node, progress: Progress
) -> Index:
    """Write a split's images, in random order, as folder/NAME-000000.tar and so on; write and return their index.

    After a call that was stopped or killed, the same call goes on. If everything is finished, it does nothing.

    Args:
        folder: Folder to write.
        name: First part of the tars' names.
        split: The images.
        options: How tars are written.
        workers: Number of processes on this node; with 0, this process writes the tars itself.
        node: This node's part of the work.
        progress: Called when tars are finished.

    Raises:
        UserError: The folder holds tars of different images or options, or cannot be written.
    """
    if not split.images:
        raise UserError(f"{folder}: there is no image to put there; correct the source")
    order = np.random.Philox(key=[options.seed, 0]).random_raw(len(split.images)).argsort(kind="stable")
    count = -(-len(order) // options.per_shard)
    names = [f"{name}-{number:06d}.tar" for number in range(count)]
    plan = _digest(split, options)
    work = folder / WORK
    if node.rank == 0:
        if _finished(folder, plan) is not None:
            shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed at the very end
        else:
            _claim(work, plan, folder)
    node.barrier()
    if (finished := _finished(folder, plan)) is not None:
        return finished

    _remove_partial(work)
    jobs = [
        (folder, tar, [split.images[i] for i in positions.tolist()], options)
        for number, (tar, positions) in enumerate(zip(names, np.array_split(order, count), strict=True))
        if number % node.world == node.rank and not _is_done(work, folder, tar)
    ]
    try:
        _run(jobs, workers, lambda: progress(len(list(work.glob("*.json"))), count))
        node.barrier()
        if node.rank == 0:
            records = {tar: json.loads((work / f"{tar}.json").read_text(encoding="utf-8")) for tar in names}
            shards = [Shard.from_record(str(folder / tar), record) for tar, record in records.items()]
            Index(str(folder), split.classes, shards, plan).save(folder)
            shutil.rmtree(work, ignore_errors=True)  # the same command given twice may still write there
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror}; correct this and give the same command again") from None
    except BrokenProcessPool:
        raise UserError(f"{folder}: a process that wrote to it {processes.DIED}") from None
    node.barrier()
    return index_file.load(folder)


def write_tar(folder: Path, tar: str, images: list[RawImage], options: Options) -> None:
    """Write one tar and then its entry of the index, where images that cannot be decoded are bad entries.

    Args:
        folder: Folder that holds the tars.
        tar: Name of the tar.
        images: The images, in the tar's order.
        options: How tars are written.
    """
    import webdataset

    # The name contains this process's id: a second process that writes the same tar writes the same bytes elsewhere.
    partial, left_out = folder / WORK / f"{tar}{_partial_suffix(os.getpid())}", []
    with partial.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
        for image in images:
            try:
                suffix, content = _encoded(image, options)
            except BadSampleError as error:
                offset = writer.tarstream.offset
                left_out.append({"key": image.key, "offset": offset, "reason": f"left out: {error}"})
                continue
            label = {} if image.label == index_file.UNLABELLED else {"cls": str(image.label).encode()}
            writer.write({"__key__": image.key, suffix: content, **label})
    files.sync(partial)
    partial.replace(folder / tar)
    record = scan(folder / tar).record()
    record["defects"] += left_out
    files.replace(folder / WORK / f"{tar}.json", json.dumps(record), durable=True)


def _encoded(image: RawImage, options: Options) -> tuple[str, bytes]:
    """Return suffix and content of the member that holds an image. Raises BadSampleError."""
    with reads.reading(image.path), open(image.path, "rb") as file:
        file.seek(image.offset)
        content = file.read(image.size)
    if image.shape:
        return "png", _save(Image.fromarray(np.frombuffer(content, np.uint8).reshape(image.shape)), "png")
    picture = Picture(content)
    shorter = min(picture.size)
    if options.resize and shorter > options.resize:
        decoded = picture.upright(shorter / options.resize / 2)
        factor = options.resize / min(decoded.size)
        width, height = (max(round(edge * factor), options.resize) for edge in decoded.size)
        scaled = decoded.resize((width, height), Image.Resampling.LANCZOS)
        return "jpg", _save(scaled, "jpeg", quality=options.quality)
    suffix = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}.get(picture.format or "")
    return (suffix, content) if suffix else ("png", _save(picture.upright(), "png"))


def _save(image: Image.Image, format_name: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _run(jobs: list[Job], workers: int, report: Callable[[], None]) -> None:
    """Call `write_tar` with each of `jobs`, in `workers` processes, or in this one if that is 0.

    report: Called from time to time.
    """
    report()
    if not workers:
        for job in jobs:
            write_tar(*job)
            report()
        return
    # Spawned, because a forked process would share this one's MPI.
    spawn = multiprocessing.get_context("spawn")
    with processes.pool(workers, spawn) as pool:
        pending = {pool.submit(write_tar, *job) for job in jobs}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_done(work: Path, folder: Path, tar: str) -> bool:
    """Return whether an earlier call has finished a tar."""
    entry, path = work / f"{tar}.json", folder / tar
    return (
        entry.exists()
        and path.exists()
        and path.stat().st_size == json.loads(entry.read_text(encoding="utf-8"))["bytes"]
    )


def _partial_suffix(process: int | str) -> str:
    """Return the suffix of unfinished files of a process of this host, given its id."""
    return f".{platform.node()}.{process}.partial"


def _remove_partial(work: Path) -> None:
    """Remove the unfinished files of processes of this host that have ended."""
    for path in work.glob("*.partial"):
        process = path.name.split(".")[-2]
        if path.name.endswith(_partial_suffix(process)) and not Path("/proc", process).exists():
            path.unlink(missing_ok=True)


def _finished(folder: Path, plan: str) -> Index | None:
    """Return the index that an earlier call has written; None if there is none.

    Raises UserError if the folder's shards follow a different plan.
    """
    if not (folder / index_file.FILE_NAME).exists():
        return None
    index = index_file.load(folder)
    if index.plan != plan:
        raise UserError(
            f"{folder}: holds shards made from different images or options; remove it or name another folder"
        )
    return index


def _claim(work: Path, plan: str, folder: Path) -> None:
    """Write down which plan the unfinished folder follows. Raises UserError if it follows a different one."""
    path = work / "plan"
    if path.exists() and path.read_text(encoding="utf-8") != plan:
        raise UserError(f"{folder}: holds unfinished shards of different images or options; remove it or name another")
    if not path.exists() and any(folder.glob("*.tar")):
        raise UserError(f"{folder}: holds tars already; remove them or name another folder")
    work.mkdir(parents=True, exist_ok=True)
    files.replace(path, plan, durable=True)


def _digest(split: Split, options: Options) -> str:
    """Return the plan: a hash of the images and the options."""
    head = json.dumps([split.classes, vars(options)])
    lines = (f"{image.key} {image.label} {image.size}\n" for image in split.images)
    return files.sha256_of(text.encode() for text in itertools.chain([head], lines))
