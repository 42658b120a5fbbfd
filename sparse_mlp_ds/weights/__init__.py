"""Reads weights, translates their names, resizes them to a different patch grid, upcycles them from dense to sparse."""
