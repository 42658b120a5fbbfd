"""Mixture of experts: the router decides, capacity places, DeepSpeed's groups move, experts compute, the layer composes."""
