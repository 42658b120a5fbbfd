"""Trained models to use and to share, without DeepSpeed."""

from sparse_mlp_ds.hub.any_model import AnyModel, from_pretrained
from sparse_mlp_ds.hub.model import SparseVisionModel
from sparse_mlp_ds.hub.text_model import SparseTextModel

__all__ = ["AnyModel", "SparseTextModel", "SparseVisionModel", "from_pretrained"]
