"""Runs of one recipe with different settings, and one table of their results."""
