"""A trained model, whatever it takes: images or text."""

from pathlib import Path

from sparse_mlp_ds.hub.config import TextConfig
from sparse_mlp_ds.hub.load import LoadedModel
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.hub.pretrained import find
from sparse_mlp_ds.hub.text_model import SparseTextModel

AnyModel = SparseVisionModel | SparseTextModel
"""A trained model of images or of text."""


def from_pretrained(
    path_or_repo: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    capacity_factor: float | None = None,
    priority: str = "importance",
    best: bool = False,
    tokenizer: str | Path | None = None,
) -> AnyModel:
    """Load a model of images or of text, as its own class's `from_pretrained` does; see there for the arguments."""
    loaded = find(path_or_repo, revision, token, best, tokenizer)
    return from_loaded(loaded, capacity_factor, priority)


def from_loaded(loaded: LoadedModel, capacity_factor: float | None = None, priority: str = "importance") -> AnyModel:
    """Build a model with weights that were loaded. For the other arguments, see the models' constructors."""
    if isinstance(loaded.config, TextConfig):
        options = (loaded.tokenizer, capacity_factor, priority)
        return SparseTextModel.from_weights(loaded.config, loaded.weights, *options)
    return SparseVisionModel.from_weights(loaded.config, loaded.weights, capacity_factor, priority)
