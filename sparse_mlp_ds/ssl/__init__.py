"""MoCo v3 (Chen, Xie and He, arXiv 2104.02057): online net, momentum net, heads and the contrastive loss."""
