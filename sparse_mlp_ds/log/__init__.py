"""The log of a run: one record per log step, and where it goes: console, metrics.jsonl, TensorBoard, wandb."""
