"""The command `sparse-mlp-ds`: one file per sub-command."""
