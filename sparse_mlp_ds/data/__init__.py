"""From WebDataset tars to batches: the order is arithmetic, workers decode and crop, the device augments."""
