"""From what a recipe says of its data to one index: folders, brace patterns, URLs and commands, alone or mixed."""

import re
from pathlib import Path

from braceexpand import braceexpand

from sparse_mlp_ds.data import cache as caches
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.cache import Cache, is_remote
from sparse_mlp_ds.data.defects import LABEL, Bad, too_many
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import Part, TrainingOrder, shares
from sparse_mlp_ds.data.sections import Data, Source
from sparse_mlp_ds.errors import UserError


def index_path(source: Source) -> str | None:
    """Return where a source's index.json is, a file or a URL; None for a command that names none."""
    if source.index or source.path.startswith("pipe:"):
        return source.index
    path = source.path.rstrip("/")
    folder = path.rpartition("/")[0] or "." if path.rstrip("}").endswith(".tar") else path
    return f"{folder}/{index_file.FILE_NAME}"


def open_sources(data: Data, sources: tuple[Source, ...]) -> list[Index]:
    """Return each source's index, checked against local tars. Raises UserError."""
    indexes = [_open(source, data) for source in sources]
    remote = [one for index in indexes for one in index.shards if is_remote(one.path)]
    if remote:
        if data.cache is None:
            raise UserError(f"data: {remote[0].path} is remote; give data.cache a folder and gigabytes")
        caches.check(data.cache.folder, min(int(data.cache.gigabytes * 1e9), sum(one.bytes for one in remote)))
    for index in indexes:
        _check_share_of_bad(index, data)
    return indexes


def cache(data: Data) -> Cache | None:
    """Return where remote tars are kept."""
    return Cache(data.cache.folder, int(data.cache.gigabytes * 1e9)) if data.cache else None


def training_order(data: Data, indexes: list[Index], batch_size: int, seed: int) -> TrainingOrder:
    """Return the order in which a training stage goes through its sources."""
    weights = [source.weight for source in data.train]
    counts = shares([len(index) for index in indexes], weights if None not in weights else None)
    parts = [Part(tuple(len(one) for one in index.shards), share) for index, share in zip(indexes, counts, strict=True)]
    return TrainingOrder(tuple(parts), batch_size, seed, data.shuffle_shards, data.tail == "pad")


def _open(source: Source, data: Data) -> Index:
    path = source.path
    try:
        names = list(braceexpand(path, escape=False)) if "{" in path else [path]
    except ValueError as error:
        raise UserError(f"data: '{path}' is no pattern ({error}); correct its braces") from None
    for one in (*names, source.index or ""):
        if one.startswith("pipe:") and not data.allow_commands:
            raise UserError(f"data: '{one}' is a command; set data.allow_commands: true if this recipe may run it")
    is_file = names[0].endswith(".tar") or path.startswith("pipe:")
    if not is_file and not is_remote(path) and not source.index:
        return index_file.load(Path(path))
    if source.index:
        folder, text = path, _read(source.index)
    elif path.startswith("pipe:"):
        raise UserError(f"data: '{path}' is a command; give its `index:` too, the index.json of these tars")
    else:
        where = index_path(source)
        folder, text = where.removesuffix(f"/{index_file.FILE_NAME}"), _read(where)
    index = index_file.parse(text, folder)
    if is_file:
        index = _selected(index, path, names)
    for one in index.shards:
        if not is_remote(one.path):
            index_file.check_size(one)
    return index


def _selected(index: Index, path: str, names: list[str]) -> Index:
    """Return the tars of an index that a pattern names, at the places that it says."""
    places, known = {}, {one.name for one in index.shards}
    for name in names:
        words = re.findall(r"[^\s/'\"]+\.tar", name) if path.startswith("pipe:") else [name.rpartition("/")[2]]
        if not (found := known.intersection(words)):
            raise UserError(f"data: '{name}' is not among the tars of its index; correct the pattern")
        places |= dict.fromkeys(found, name)
    return Index(path, index.classes, [_at(one, places[one.name]) for one in index.shards if one.name in places])


def _at(one: index_file.Shard, path: str) -> index_file.Shard:
    return index_file.Shard(**(vars(one) | {"path": path}))


def _read(path: str) -> bytes:
    try:
        if not is_remote(path):
            return Path(path).read_bytes()
        with caches.open_remote(path) as file:
            return file.read()
    except OSError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({said}); the tars need their index.json beside them") from None


def _check_share_of_bad(index: Index, data: Data) -> None:
    """Raise UserError if the tars' defects and labels outside the classes are too many for any epoch."""
    bad = [Bad(one.path, defect.key, "index", defect.reason) for one in index.shards for defect in one.defects]
    for one in index.shards:
        for place in ((one.labels < 0) | (one.labels >= data.classes)).nonzero()[0]:
            detail = f"has label {one.labels[place]}, outside the {data.classes} classes of data.classes"
            bad.append(Bad(one.path, one.key(int(place)), LABEL, detail))
    total = len(index) + sum(len(one.defects) for one in index.shards)
    if len(bad) > data.bad_limit * total:
        raise UserError(too_many(bad, len(bad), total, data.bad_limit))
    if not len(index):
        raise UserError(f"{index.source}: no samples; remake the shards")
