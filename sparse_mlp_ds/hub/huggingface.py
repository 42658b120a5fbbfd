"""Downloads from and uploads to the Hugging Face Hub, with the package `huggingface_hub` if it is installed."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.weights.locate import CONFIG, WEIGHTS

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def is_repo(name: str) -> bool:
    """Return whether a name has the form of a repository, OWNER/NAME."""
    return _REPO.fullmatch(name) is not None


def download(repo: str, revision: str | None, token: str | None) -> tuple[Path, Path]:
    """Download config.json and model.safetensors of a repository into the Hub's cache, unless they are there already.

    Args:
        repo: The repository, OWNER/NAME.
        revision: Branch, tag or commit; None for the newest commit.
        token: Access token; None for the one that `huggingface_hub` has stored, if any.

    Returns the paths of the two files. Raises UserError if the Hub does not have them or cannot be reached.
    """
    try:
        return download_file(repo, CONFIG, revision, token), download_file(repo, WEIGHTS, revision, token)
    except UserError as error:
        raise UserError(f"{repo}: no such folder, and {error}") from None


def download_file(repo: str, name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download a file of a repository into the Hub's cache, unless it is there already, and return its path.

    Args:
        repo: The repository, OWNER/NAME.
        name: Path of the file in it.
        revision: Branch, tag or commit; None for the newest commit.
        token: Access token; None for the one that `huggingface_hub` has stored, if any.

    Raises UserError if the Hub does not have it or cannot be reached.
    """
    try:
        return Path(_package().hf_hub_download(repo, name, revision=revision, token=token))
    except (OSError, ValueError) as error:  # what the package raises derives from these
        raise UserError(f"the Hub does not provide it ({one_line(error, 200)})") from None


def download_if_there(repo: str, name: str, revision: str | None = None) -> Path | None:
    """Download a file of a repository as `download_file` does; return None if the repository has no such file."""
    try:
        return Path(_package().hf_hub_download(repo, name, revision=revision))
    except _package().errors.EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"the Hub does not provide it ({one_line(error, 200)})") from None


def upload(
    save: Callable[[Path], Path], repo: str, private: bool | None, token: str | None, commit: dict[str, Any]
) -> str:
    """Upload an export to a repository, which is created if it does not exist.

    Args:
        save: Writes the export into the folder that it is given, and returns the folder.
        repo: The repository, OWNER/NAME.
        private: Whether a new repository is private; None for the owner's default.
        token: Access token; None for the one that `huggingface_hub` has stored.
        commit: Further arguments of `huggingface_hub.HfApi.upload_folder`.

    Returns the address of the commit. Raises UserError if the Hub refuses the upload or cannot be reached.
    """
    if not is_repo(repo):
        raise UserError(f"{repo!r}: no repository; write it as OWNER/NAME")
    hub = _package()
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            export = save(Path(folder) / "export")
            commit = {"commit_message": "Weights of sparse_mlp_ds"} | commit
            return str(api.upload_folder(repo_id=repo, folder_path=export, **commit))
    except (OSError, ValueError) as error:
        raise UserError(f"{repo}: the Hub refused it ({one_line(error, 200)})") from None


def _package() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            'if it is a repository of the Hugging Face Hub, `pip install "sparse_mlp_ds[hub]"` fetches it'
        ) from None
    return huggingface_hub
