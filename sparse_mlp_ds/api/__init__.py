"""What `import sparse_mlp_ds as sm` offers: train a recipe, create a model, read shards, use one MoE layer alone."""
