"""One record per log step, and where it goes: the progress line, metrics.jsonl, TensorBoard, wandb."""
