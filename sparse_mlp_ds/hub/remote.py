"""The Hugging Face Hub, through its own package where that is installed."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.weights.places import CONFIG, WEIGHTS

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def is_repo(name: str) -> bool:
    """Say whether a name could be a repository's, OWNER/NAME."""
    return _REPO.fullmatch(name) is not None


def fetch(repo: str, revision: str | None, token: str | None) -> tuple[Path, Path]:
    """Return config.json and model.safetensors of a repository, from the Hub's cache if they are there.

    Raises UserError.
    """
    hub = _package(repo)
    try:
        config, weights = (
            Path(hub.hf_hub_download(repo, name, revision=revision, token=token)) for name in (CONFIG, WEIGHTS)
        )
    except (OSError, ValueError) as error:  # what the package raises derives from these
        raise UserError(f"{repo}: no such folder, and not to be had from the Hub ({_brief(error)})") from None
    return config, weights


def push(
    save: Callable[[Path], Path], repo: str, private: bool | None, token: str | None, commit: dict[str, Any]
) -> str:
    """Upload what `save` writes into a folder; return the commit's address. Raises UserError."""
    if not is_repo(repo):
        raise UserError(f"{repo!r}: no repository; write it as OWNER/NAME")
    hub = _package(repo)
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            made = save(Path(folder) / "export")
            commit = {"commit_message": "Weights of sparse_mlp_ds"} | commit
            return str(api.upload_folder(repo_id=repo, folder_path=made, **commit))
    except (OSError, ValueError) as error:
        raise UserError(f"{repo}: the Hub refused it ({_brief(error)})") from None


def _package(repo: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{repo}: no such folder; if it is a repository of the Hugging Face Hub, `pip install sparse_mlp_ds[hub]`"
        ) from None
    return huggingface_hub


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
