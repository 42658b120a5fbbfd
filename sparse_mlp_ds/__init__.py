"""sparse_mlp_ds: distributed training of Sparse-MLP (arXiv 2109.02008) with DeepSpeed's expert parallelism."""

__version__ = "0.1.0"
