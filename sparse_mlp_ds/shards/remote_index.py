"""The index of tars that lie elsewhere: each is fetched once, read, and removed again; only the index stays here."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data.cache import fetch
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.shards.passed_over import PassedOver
from sparse_mlp_ds.shards.scan import joined, scan

_TRIES = 3
_PAUSE = 1.0  # seconds before the second try


def make_remote_index(
    url: str,
    classes: list[str] | None,
    passed_over: PassedOver,
    report: Callable[[int, int], None],
) -> Index:
    """Index the tars behind a URL, without writing anything that stays.

    Args:
        url: A folder, or a pattern of tars in one folder such as `https://host/in1k/train-{000000..000146}.tar`.
        classes: Class names; None calls classes by their numbers.
        passed_over: Counts what the tars hold besides samples and bad entries.
        report: Called with the number of finished tars and of all tars.

    Raises UserError.
    """
    tars = _tars(url)
    folder = tars[0].rpartition("/")[0]
    if any(tar.rpartition("/")[0] != folder for tar in tars):
        raise UserError(f"{url}: names tars of different folders; index one folder at a time")
    shards = []
    for number, tar in enumerate(tars):
        report(number, len(tars))
        shards.append(_scanned(tar, passed_over))
    with tempfile.TemporaryDirectory() as beside:
        if any(shard.row_bytes for shard in shards):
            _fetch_tokenizer(folder, Path(beside, TOKENIZER))
        return joined(folder, shards, classes, passed_over, Path(beside))


def _fetch_tokenizer(folder: str, copy: Path) -> None:
    """Write what lies beside remote tars of rows, and says what their tokens are, to `copy`. Raises UserError."""
    try:
        fetch(f"{folder}/{TOKENIZER}", copy)
    except OSError as error:
        raise UserError(f"{folder}/{TOKENIZER}: cannot be fetched ({one_line(error, 200)}); put it there") from None


def _tars(url: str) -> list[str]:
    """Return the URLs of the tars that a folder or a pattern names, sorted."""
    from braceexpand import braceexpand

    try:
        names = sorted(set(braceexpand(url, escape=False)))
    except ValueError as error:
        raise UserError(f"{url}: is no pattern ({error}); correct its braces") from None
    if all(name.endswith(".tar") for name in names):
        return names
    if len(names) > 1:
        raise UserError(f"{url}: a pattern names tars, such as {names[0].rstrip('/')}/train-000000.tar")
    return _listed(url.rstrip("/"))


def _listed(folder: str) -> list[str]:
    """Return the tars in a folder that fsspec can list."""
    if folder.startswith(("http://", "https://")):
        raise UserError(
            f"{folder}: a web server lists no files; name the tars, such as {folder}/a-{{000000..000009}}.tar"
        )
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(folder)
        found = [str(name).rpartition("/")[2] for name in system.ls(path, detail=False)]
    except Exception as error:  # each driver has its own exceptions
        raise UserError(
            f"{folder}: cannot be listed ({one_line(error, 200)}); correct it, or install its driver"
        ) from None
    tars = sorted(name for name in found if name.endswith(".tar") and not name.startswith("."))
    if not tars:
        raise UserError(f"{folder}: no .tar files there; give the folder that holds them")
    return [f"{folder}/{name}" for name in tars]


def _scanned(url: str, passed_over: PassedOver) -> Shard:
    """Return what a remote tar holds. Raises UserError if it does not come whole."""
    reason = ""
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work, files.plain_name(url.rpartition("/")[2]))
        for attempt in range(_TRIES):
            time.sleep(_PAUSE * attempt)
            try:
                fetch(url, copy)
                return scan(copy, passed_over, url)
            except OSError as error:
                reason = one_line(error, 200)
    raise UserError(f"{url}: cannot be fetched into {tempfile.gettempdir()} ({reason}); correct it, or set TMPDIR")
