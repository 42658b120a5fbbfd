"""Making shards: many processes, on many nodes, stopped at any point and started again.

Which image goes into which tar is a function of the originals and the seed alone, so every process knows it. A tar
appears under its name when it is whole; what is finished stands in a file beside it until the index is written.
"""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.decode import Picture
from sparse_mlp_ds.data.defects import BadSampleError
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.originals import Original, Split
from sparse_mlp_ds.data.scan import scan
from sparse_mlp_ds.errors import UserError

WORK = ".making"
"""Folder of what is unfinished, inside the one that is made."""
Progress = Callable[[int, int], None]
"""(tars finished, tars in all)."""


@dataclass(frozen=True)
class Options:
    """How tars are made."""

    per_shard: int = 10_000
    """Most images per tar."""
    resize: int | None = None
    """Shorter side, pixels, of images that are larger; they become JPEGs. Without, files are copied as they are."""
    quality: int = 95
    """Of these JPEGs."""
    seed: int = 0
    """Of the order in which images go into tars."""


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process group's: rank of world nodes."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None


def make(
    folder: Path, name: str, split: Split, options: Options, workers: int, share: Share, progress: Progress
) -> Index:
    """Write a split's images, in random order, as folder/NAME-000000.tar ... and their index; return it.

    Called again after any kind of end it goes on, called again when finished it does nothing. Raises UserError if the
    folder holds the tars of another set, or other options.
    """
    order = np.random.Philox(key=[options.seed, 0]).random_raw(len(split.originals)).argsort(kind="stable")
    count = -(-len(order) // options.per_shard)
    names = [f"{name}-{number:06d}.tar" for number in range(count)]
    plan = _digest(split, options)
    work = folder / WORK
    if share.rank == 0 and not _is_finished(folder, plan):
        work.mkdir(parents=True, exist_ok=True)
        _claim(work / "plan", plan, folder)
    share.barrier()
    if not work.exists():
        return index_file.load(folder)

    waiting = [
        (folder, tar, [split.originals[i] for i in places.tolist()], options)
        for number, (tar, places) in enumerate(zip(names, np.array_split(order, count), strict=True))
        if number % share.world == share.rank and not _is_done(work, folder, tar)
    ]
    _run(waiting, workers, lambda: progress(len(list(work.glob("*.json"))), count))
    share.barrier()
    if share.rank == 0:
        shards = [index_file.shard(str(folder / tar), json.loads((work / f"{tar}.json").read_text())) for tar in names]
        Index(str(folder), split.classes, shards, plan).save(folder)
        shutil.rmtree(work)
    share.barrier()
    return index_file.load(folder)


def write_tar(folder: Path, tar: str, originals: list[Original], options: Options) -> None:
    """Write one tar and, when it is whole, its entry of the index. What cannot be decoded is named there."""
    import webdataset

    partial, skipped, offset = folder / WORK / f"{tar}.partial", [], 0
    with partial.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
        for original in originals:
            try:
                suffix, content = _encoded(original, options)
            except BadSampleError as error:
                skipped.append({"key": original.key, "offset": offset, "reason": f"left out: {error}"})
                continue
            writer.write({"__key__": original.key, suffix: content, "cls": str(original.label).encode()})
            offset = file.tell()
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(folder / tar)
    record = scan(folder / tar).record()
    record["defects"] += skipped
    _write(folder / WORK / f"{tar}.json", json.dumps(record))


def _encoded(original: Original, options: Options) -> tuple[str, bytes]:
    """Return a member's suffix and bytes."""
    with open(original.path, "rb") as file:
        file.seek(original.offset)
        content = file.read(original.size)
    if original.shape:
        image = Image.fromarray(np.frombuffer(content, np.uint8).reshape(original.shape))
        return "png", _save(image, "png")
    picture = Picture(content)
    shorter = min(picture.size)
    if options.resize and shorter > options.resize:
        image = picture.upright(shorter / options.resize / 2)
        factor = options.resize / min(image.size)
        size = tuple(max(round(edge * factor), options.resize) for edge in image.size)
        return "jpg", _save(image.resize(size, Image.Resampling.LANCZOS), "jpeg", quality=options.quality)
    suffix = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}.get(picture.format)
    return (suffix, content) if suffix else ("png", _save(picture.upright(), "png"))


def _save(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _run(jobs: list[tuple], workers: int, report: Callable[[], None]) -> None:
    """Call `write_tar` with each of `jobs`, in processes unless `workers` is 0, reporting now and then."""
    report()
    if not workers:
        for job in jobs:
            write_tar(*job)
            report()
        return
    # Spawned: a forked process would share the parent's MPI.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = {pool.submit(write_tar, *job) for job in jobs}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                report()
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            raise UserError(
                f"{error.filename or 'shards make'}: {error.strerror}; mend it and give the same command"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_done(work: Path, folder: Path, tar: str) -> bool:
    """Say whether a tar was finished by an earlier run."""
    entry, path = work / f"{tar}.json", folder / tar
    return entry.exists() and path.exists() and path.stat().st_size == json.loads(entry.read_text())["bytes"]


def _is_finished(folder: Path, plan: str) -> bool:
    if not (folder / index_file.FILE_NAME).exists():
        return False
    if index_file.load(folder).plan != plan:
        raise UserError(f"{folder}: holds shards made from other images or options; remove it or name another folder")
    return True


def _claim(path: Path, plan: str, folder: Path) -> None:
    """Note which plan the unfinished folder follows, or see that it follows this one."""
    if path.exists() and path.read_text() != plan:
        raise UserError(f"{folder}: holds unfinished shards of other images or options; remove it or name another")
    _write(path, plan)


def _digest(split: Split, options: Options) -> str:
    digest = hashlib.sha256(json.dumps([split.classes, vars(options)]).encode())
    for original in split.originals:
        digest.update(f"{original.key} {original.label} {original.size}\n".encode())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    partial.write_text(text)
    partial.replace(path)
