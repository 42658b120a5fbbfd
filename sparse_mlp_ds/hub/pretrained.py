"""Finds a trained model by its path or name: on this host, in the package, or on the Hugging Face Hub."""

import warnings
from pathlib import Path

from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.config import TextConfig, read
from sparse_mlp_ds.hub.huggingface import download, download_file, is_repo
from sparse_mlp_ds.hub.load import LoadedModel, load_export, load_model
from sparse_mlp_ds.hub.shipped import folder as shipped_folder


def find(
    path_or_repo: str | Path,
    revision: str | None = None,
    token: str | None = None,
    best: bool = False,
    tokenizer: str | Path | None = None,
) -> LoadedModel:
    """Load the config, weights and tokenizer of a model.

    Args:
        path_or_repo: The folder of an export, a run or a checkpoint, a repository OWNER/NAME of the Hub, or a model
            that comes with the package. A folder of that name comes first.
        revision: Branch, tag or commit of the repository; None for the newest commit.
        token: Access token of the Hub.
        best: Of a run, take the checkpoint with the best validation instead of the newest one.
        tokenizer: The tokenizer's file of a run or checkpoint of text that has none beside it.

    Raises UserError. Issues a RuntimeWarning for each newer checkpoint of a run that is damaged and not used, and for
    class names that nobody has compared with the training images'.
    """
    path = Path(path_or_repo)
    if not path.exists() and (ours := shipped_folder(str(path_or_repo))):
        path = ours
    if path.exists() or not is_repo(str(path_or_repo)):
        loaded = load_model(path, best=best, tokenizer=None if tokenizer is None else Path(tokenizer))
    elif tokenizer is not None:
        raise UserError(f"{path_or_repo}: an export has its own tokenizer; leave out --tokenizer")
    else:
        config, _ = download(str(path_or_repo), revision, token)
        if isinstance(read(config), TextConfig):
            download_file(str(path_or_repo), TOKENIZER, revision, token)
        loaded = load_export(config.parent)
    for line in loaded.remarks:
        warnings.warn(line, RuntimeWarning, stacklevel=3)
    return loaded
