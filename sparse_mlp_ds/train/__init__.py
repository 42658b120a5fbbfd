"""Running a recipe: `loop.run` goes through its stages; `engine` and `state` are where DeepSpeed is spoken to."""
