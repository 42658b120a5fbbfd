"""Checkpoints on disk: written, found, checked, read, compared and cleared away."""
