"""Vision models, built by name: `registry.build(spec)`; each has forward_features, forward_head and reset_head."""
