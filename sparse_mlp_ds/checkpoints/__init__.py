"""Checkpoints as they lie on disk: found, checked, read, compared, cleared away; `train.checkpoint` writes them."""
