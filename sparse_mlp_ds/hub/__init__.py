"""Trained models to use and to give away, without DeepSpeed."""

from sparse_mlp_ds.hub.model import SparseVisionModel

__all__ = ["SparseVisionModel"]
