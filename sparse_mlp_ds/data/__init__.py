"""From WebDataset tars to batches: the order is arithmetic on an index, workers decode and crop, the device augments."""
