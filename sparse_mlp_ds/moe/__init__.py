"""Mixture of experts: router decides, capacity places, DeepSpeed's groups move, experts compute, layer composes."""
