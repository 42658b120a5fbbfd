"""Train a recipe: `deepspeed --num_gpus 2 train.py --ds_config ds_configs/moe.json`."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # it could not even read the package, and would say so in a traceback
    sys.stderr.write(f"error: train.py needs Python 3.10 or newer, {sys.executable} is {sys.version.split()[0]}\n")
    sys.exit(2)

from sparse_mlp_ds.train.start import start

if __name__ == "__main__":
    sys.exit(start())
