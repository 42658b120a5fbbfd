"""From WebDataset tars to batches: the order is computed, loader processes decode and crop, the device augments."""
