"""Weights from files: read, translated, resized to another patch grid, upcycled from dense to sparse."""
