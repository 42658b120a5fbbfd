"""MoCo v3 (Chen, Xie and He, arXiv 2104.02057): its two networks, their heads and the contrastive loss."""
