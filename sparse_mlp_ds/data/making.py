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
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
    if not split.originals:
        raise UserError(f"{folder}: there is no image to put there; correct the source")
    order = np.random.Philox(key=[options.seed, 0]).random_raw(len(split.originals)).argsort(kind="stable")
    count = -(-len(order) // options.per_shard)
    names = [f"{name}-{number:06d}.tar" for number in range(count)]
    plan = _digest(split, options)
    work = folder / WORK
    if share.rank == 0:
        if _finished(folder, plan) is not None:
            shutil.rmtree(work, ignore_errors=True)  # of one that was killed at its very end
        else:
            _claim(work, plan, folder)
    share.barrier()
    if (made := _finished(folder, plan)) is not None:
        return made

    _remove_partial(work)
    waiting = [
        (folder, tar, [split.originals[i] for i in places.tolist()], options)
        for number, (tar, places) in enumerate(zip(names, np.array_split(order, count), strict=True))
        if number % share.world == share.rank and not _is_done(work, folder, tar)
    ]
    try:
        _run(waiting, workers, lambda: progress(len(list(work.glob("*.json"))), count))
        share.barrier()
        if share.rank == 0:
            records = {tar: json.loads((work / f"{tar}.json").read_text()) for tar in names}
            shards = [index_file.shard(str(folder / tar), record) for tar, record in records.items()]
            Index(str(folder), split.classes, shards, plan).save(folder)
            shutil.rmtree(work, ignore_errors=True)  # another process may still be at work, on the same bytes
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror}; mend it and give the same command") from None
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a process that wrote to it died; if it was for lack of memory, lower --workers; then give the "
            "same command"
        ) from None
    share.barrier()
    return index_file.load(folder)


def write_tar(folder: Path, tar: str, originals: list[Original], options: Options) -> None:
    """Write one tar and, when it is whole, its entry of the index. What cannot be decoded is named there."""
    import webdataset

    # A name of this process's own: a second one, left over or started twice, writes the same bytes.
    partial, skipped = folder / WORK / f"{tar}{_process(os.getpid())}", []
    with partial.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
        for original in originals:
            try:
                suffix, content = _encoded(original, options)
            except BadSampleError as error:
                offset = writer.tarstream.offset
                skipped.append({"key": original.key, "offset": offset, "reason": f"left out: {error}"})
                continue
            writer.write({"__key__": original.key, suffix: content, "cls": str(original.label).encode()})
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
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
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


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even if it was killed."""

    def wait_for_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _is_done(work: Path, folder: Path, tar: str) -> bool:
    """Say whether a tar was finished by an earlier run."""
    entry, path = work / f"{tar}.json", folder / tar
    return entry.exists() and path.exists() and path.stat().st_size == json.loads(entry.read_text())["bytes"]


def _process(number: int | str) -> str:
    """Return how the files end that a process of this host has not finished."""
    return f".{os.uname().nodename}.{number}.partial"


def _remove_partial(work: Path) -> None:
    """Remove what processes of this host left unfinished that are no more."""
    for path in work.glob("*.partial"):
        number = path.name.split(".")[-2]
        if path.name.endswith(_process(number)) and not Path("/proc", number).exists():
            path.unlink(missing_ok=True)


def _finished(folder: Path, plan: str) -> Index | None:
    """Return the index that an earlier run has written, if one has."""
    if not (folder / index_file.FILE_NAME).exists():
        return None
    made = index_file.load(folder)
    if made.plan != plan:
        raise UserError(f"{folder}: holds shards made from other images or options; remove it or name another folder")
    return made


def _claim(work: Path, plan: str, folder: Path) -> None:
    """Note which plan the unfinished folder follows, or see that it follows this one."""
    path = work / "plan"
    if path.exists() and path.read_text() != plan:
        raise UserError(f"{folder}: holds unfinished shards of other images or options; remove it or name another")
    if not path.exists() and any(folder.glob("*.tar")):
        raise UserError(f"{folder}: holds tars already; remove them or name another folder")
    work.mkdir(parents=True, exist_ok=True)
    _write(path, plan)


def _digest(split: Split, options: Options) -> str:
    digest = hashlib.sha256(json.dumps([split.classes, vars(options)]).encode())
    for original in split.originals:
        digest.update(f"{original.key} {original.label} {original.size}\n".encode())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
