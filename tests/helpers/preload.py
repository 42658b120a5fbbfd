"""What every rank needs, imported once by the server that ranks are forked from."""

# ruff: noqa: F401
import deepspeed.runtime.zero.muon.muon_optimizer
import kornia.enhance
import kornia.filters

import sparse_mlp_ds.train.loop
