"""`python -m sparse_mlp_ds.train` and `deepspeed --module sparse_mlp_ds.train`: the trainer without a checkout."""

import sys

from sparse_mlp_ds.train.start import start

if __name__ == "__main__":
    sys.exit(start(program="python -m sparse_mlp_ds.train"))
