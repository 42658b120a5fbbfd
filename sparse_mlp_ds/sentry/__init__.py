"""Processes that watch ranks: small ones of their own, so that they outlive what they watch. They import no torch."""
