"""Weights that lie elsewhere, at the Hugging Face Hub or behind a URL: they are brought to this host, once."""

import json
import os
import platform
import re
from pathlib import Path
from urllib.parse import urlsplit

from sparse_mlp_ds import files
from sparse_mlp_ds.data.cache import fetch
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.hub import huggingface
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.weights import formats
from sparse_mlp_ds.weights.locate import CONFIG, WEIGHTS

HUB = "hf://"
"""Beginning of the names of repositories of the Hugging Face Hub."""
_REPOSITORY = re.compile(
    HUB + r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>refs/pr/\d+|[\w.-]+))?(/(?P<file>[\w./ -]+))?/?", re.ASCII
)


def local(path: str) -> Path:
    """Return where weights are on this host; those that lie elsewhere are fetched unless an earlier call did so.

    path: A path on this host, which is returned as it is; `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION/FILE`; or a URL
    of a .safetensors or .npz file. Processes of one host may ask at once: one fetches, the rest wait. Raises UserError.
    """
    if path.startswith(HUB):
        return _of_hub(path)
    return _of_url(path) if "://" in path else Path(path)


def _of_hub(path: str) -> Path:
    """Return the file of a repository; or the folder of one that holds an export of this package."""
    parts = _REPOSITORY.fullmatch(path)
    if parts is None or ".." in path:
        raise UserError(f"{path}: no repository; write it as hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FILE")
    repo, revision, file = parts["repo"], parts["revision"], parts["file"]
    formats.check_suffix(Path(file or WEIGHTS))  # pickles are not even fetched
    try:
        weights = huggingface.download_file(repo, file or WEIGHTS, revision)
        config = None if file else huggingface.download_if_there(repo, CONFIG, revision)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return weights.parent if config and _is_own(config) else weights


def _is_own(config: Path) -> bool:
    """Return whether a config.json is one that this package wrote; timm's says how its own model is built."""
    try:
        return "spec" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _of_url(url: str) -> Path:
    name = files.plain_name(urlsplit(url).path.rpartition("/")[2])
    formats.check_suffix(Path(name))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparse_mlp_ds/weights"
    target = cache / f"{files.sha256_of([url.encode()])[:16]}-{name}"
    if target.exists():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with files.lock(cache / f".{target.name}.lock"):
            if not target.exists():
                _download(url, target)
    except OSError as error:
        raise UserError(f"{url}: cannot be fetched into {cache} ({one_line(error, 200)}); correct it") from None
    return target


def _download(url: str, target: Path) -> None:
    """Write what is behind a URL into a file, which appears whole or not at all. Raises OSError."""
    partial = target.with_name(f".{target.name}.{platform.node()}.{os.getpid()}.partial")
    say(f"fetching {url} into {target}")
    try:
        fetch(url, partial, formats.LARGEST)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
