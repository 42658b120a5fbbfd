"""What a run is told: the recipe and the DeepSpeed JSON, read and checked before any process group exists."""
