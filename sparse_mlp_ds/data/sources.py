"""From a recipe's section `data` to an index: folders, brace patterns, URLs and commands, alone or mixed."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data.bad_samples import LABEL, BadSample, outside, too_many
from sparse_mlp_ds.data.cache import Cache, check_space, is_remote, open_remote
from sparse_mlp_ds.data.config import Data, Source
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.order import Part, TrainingOrder, samples_per_epoch
from sparse_mlp_ds.errors import UserError, one_line


def index_path(source: Source) -> str | None:
    """Return the path or URL of a source's index.json; None for a `pipe:` command without the key `index`."""
    if source.index or source.path.startswith("pipe:"):
        return source.index
    path = source.path.rstrip("/")
    folder = path.rpartition("/")[0] or "." if path.rstrip("}").endswith(".tar") else path
    return f"{folder}/{index_file.FILE_NAME}"


def beside_index(source: Source, name: str) -> bytes | None:
    """Return the content of a file that lies beside a source's index.json; None if it cannot be read."""
    where = index_path(source)
    path = None if where is None else f"{where.rpartition('/')[0] or '.'}/{name}"
    try:
        if path is None or path.startswith("pipe:"):
            return None
        if not is_remote(path):
            return Path(path).read_bytes()
        with open_remote(path) as file:
            return file.read()
    except (OSError, UserError):
        return None


def open_sources(data: Data, sources: Sequence[Source]) -> list[Index]:
    """Return the index of each source, after a check of its local tars and of the room for remote ones.

    Raises UserError.
    """
    indexes = [_open(source, data) for source in sources]
    remote = [shard for index in indexes for shard in index.shards if is_remote(shard.path)]
    if remote:
        if data.cache is None:
            raise UserError(f"data: {remote[0].path} is remote; give data.cache a folder and gigabytes")
        limit, total = int(data.cache.gigabytes * 1e9), sum(shard.bytes for shard in remote)
        check_space(data.cache.folder, min(limit, total))
    for index in indexes:
        check_alike(indexes[0], index)
        _check_share_of_bad(index, data)
    return indexes


def check_images(index: Index) -> None:
    """Raise UserError if a data set holds rows of tokens where images are needed."""
    if index.text or any(shard.row_bytes for shard in index.shards):
        raise UserError(f"{index.source}: holds rows of tokens; this needs images")


def check_alike(one: Index, two: Index) -> None:
    """Raise UserError unless both data sets hold images, or both hold rows of tokens that mean the same.

    How texts were put into the rows may differ.
    """
    if one.text is None or two.text is None:
        if one.text is not two.text:
            images, text = (two, one) if one.text else (one, two)
            raise UserError(f"data: {images.source} holds images, {text.source} rows of tokens; use one kind")
        return
    for name in ("tokenizer", "vocabulary", "length", "special"):
        if getattr(one.text, name) != getattr(two.text, name):
            fix = "--length N" if name == "length" else "--tokenizer FILE"
            raise UserError(
                f"data: {two.source} was made with a different {name} than {one.source}; make it again with "
                f"`sparse-mlp-ds shards make` and the same {fix}"
            )


def remarks(sources: Sequence[Source]) -> list[str]:
    """Return a line for each local folder among the sources that holds tars which its index does not list."""
    folders = dict.fromkeys(Path(source.path) for source in sources if not source.index)
    lines = [unlisted(index_file.load_unchecked(one), one) for one in folders if one.is_dir()]
    return [line for line in lines if line]


def unlisted(index: Index, folder: Path) -> str:
    """Return a line about the tars in a folder that its index does not list, so that nobody reads them; or nothing."""
    listed = {shard.name for shard in index.shards}
    tars = sorted(path.name for path in folder.glob("*.tar") if path.name not in listed and path.name[0] != ".")
    if not tars:
        return ""
    example = f"{'such as ' if len(tars) > 1 else ''}{tars[0]}"
    return (
        f"{folder}: not read, because the index does not list them: {len(tars)} tars ({example}); remove them, or run "
        f"`sparse-mlp-ds shards index {folder}` again"
    )


def cache(data: Data) -> Cache | None:
    """Return the cache of remote tars; None if the recipe names none."""
    return Cache(data.cache.folder, int(data.cache.gigabytes * 1e9)) if data.cache else None


def training_order(data: Data, indexes: Sequence[Index], batch_size: int, seed: int) -> TrainingOrder:
    """Return the order in which a training stage goes through its sources.

    Args:
        data: The recipe's section `data`.
        indexes: The index of each source in `data.train`.
        batch_size: Samples per optimizer step over all ranks.
        seed: Seed of the run.
    """
    weights = [source.weight for source in data.train if source.weight is not None]  # of all sources, or of none
    counts = samples_per_epoch([len(index) for index in indexes], weights or None)
    parts = [
        Part(tuple(len(shard) for shard in index.shards), count) for index, count in zip(indexes, counts, strict=True)
    ]
    return TrainingOrder(tuple(parts), batch_size, seed, data.shuffle_shards, data.tail == "pad")


def _open(source: Source, data: Data) -> Index:
    """Return a source's index, restricted to the tars that its pattern names. Raises UserError."""
    path = source.path
    try:
        names = _expanded(path) if "{" in path else [path]
    except ValueError as error:
        raise UserError(f"data: '{path}' is no pattern ({error}); correct its braces") from None
    for name in (*names, source.index or ""):
        if name.startswith("pipe:") and not data.allow_commands:
            raise UserError(f"data: '{name}' is a command; set data.allow_commands: true if this recipe may run it")
    where = index_path(source)
    if where is None:
        raise UserError(f"data: '{path}' is a command; give its `index:` too, the index.json of these tars")
    names_tars = names[0].endswith(".tar") or path.startswith("pipe:")
    if not (names_tars or is_remote(path) or source.index):
        return index_file.load(Path(path))
    folder = path if source.index else where.removesuffix(f"/{index_file.FILE_NAME}")
    index = index_file.parse(_read(where), folder)
    if names_tars:
        index = _selected(index, path, names)
    for shard in index.shards:
        if not is_remote(shard.path):
            index_file.check_size(shard)
        elif shard.files is not None:
            raise UserError(
                f"data: {path} is remote, where only tars are read; make some with `sparse-mlp-ds shards make`"
            )
    return index


def _expanded(pattern: str) -> list[str]:
    from braceexpand import braceexpand

    return list(braceexpand(pattern, escape=False))


def _selected(index: Index, pattern: str, names: list[str]) -> Index:
    """Return the tars of an index that a pattern names, at the paths `names` into which it expands."""
    known, paths = {shard.name for shard in index.shards}, dict[str, str]()
    for name in names:
        words = re.findall(r"[^\s/'\"]+\.tar", name) if pattern.startswith("pipe:") else [name.rpartition("/")[2]]
        if not (tars := known.intersection(words)):
            raise UserError(f"data: '{name}' is not among the tars of its index; correct the pattern")
        paths |= dict.fromkeys(tars, name)
    shards = [replace(shard, path=paths[shard.name]) for shard in index.shards if shard.name in paths]
    return Index(pattern, index.classes, shards, text=index.text)


def _read(path: str) -> bytes:
    try:
        if not is_remote(path):
            return Path(path).read_bytes()
        with open_remote(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); the tars need their index.json beside them"
        ) from None


def _check_share_of_bad(index: Index, data: Data) -> None:
    """Raise UserError if bad entries and labels outside the classes are more than any epoch may have."""
    bad_samples = [
        BadSample(shard.path, entry.key, "index", entry.reason) for shard in index.shards for entry in shard.bad_entries
    ]
    for shard in index.shards:
        if data.classes is None:
            continue
        for position in ((shard.labels < 0) | (shard.labels >= data.classes)).nonzero()[0]:
            label = int(shard.labels[position])
            name = index.classes[label] if data.classes <= label < len(index.classes) else ""
            detail = outside(label, data.classes, name)
            bad_samples.append(BadSample(shard.path, shard.key(int(position)), LABEL, detail))
    total = len(index) + sum(len(shard.bad_entries) for shard in index.shards)
    if len(bad_samples) > data.bad_limit * total:
        raise UserError(too_many(bad_samples, len(bad_samples), total, data.bad_limit))
    if not len(index):
        raise UserError(f"{index.source}: no samples; remake the shards")
