"""Blocks of a model as compiled graphs (`torch.compile`), each without a break.

A block is compiled whole if nothing in it makes the host wait. Experts that are spread over ranks, that run one after
the other, or that draw dropout need numbers from the device; of a block with such experts the dense parts are compiled.
All blocks of a kind share their graphs: what is different between them, weights and streams, is an input.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import nn

from sparse_mlp_ds.distributed import compilers
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.moe import grouped
from sparse_mlp_ds.moe.layer import MoELayer
from sparse_mlp_ds.train.job import Job

BACKEND = "inductor"
"""What turns graphs into kernels; tests take one that computes as without compilation."""
MOST_GRAPHS = 64
"""Graphs that the blocks of one stage may need: by kind of block, with gradients and without, and by batch size."""


def decide(job: Job, elsewhere: bool = False) -> Job:
    """Return the run with what its `train.compile` means on this host, and with a remark if that is not what it says.

    elsewhere: whether the run is only planned here, so that this host need not be able to compile.
    Raises UserError if it must compile and this host cannot.
    """
    wanted = job.recipe.train.compile
    if wanted == "off" or (wanted == "auto" and not job.gpu):
        return job
    lack = None if elsewhere else compilers.lacking(job.gpu)
    if job.ds_config.zero_stage == 3:
        lack = "ZeRO-3 collects weights between the layers of a block, which no graph can hold; use ZeRO-2"
    if lack is None:
        return replace(job, compiles=True)
    if wanted == "on":
        raise UserError(f"train.compile: on: {lack}, or set train.compile: off")
    return replace(job, remarks=[*job.remarks, f"train.compile: auto: blocks are not compiled: {lack}"])


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Compile the blocks of a stage's networks in place; names of tensors do not change.

    Weights must be on the device and of the type with which they run. A graph is made when it is first needed; those of
    the stage before are forgotten.
    """
    backbones = [module for network in networks for module in network.modules() if isinstance(module, Backbone)]
    if not backbones:
        return
    torch.compiler.reset()
    torch.compiler.assume_constant_result(grouped.on_hopper)  # marked here, since marking imports a compiler
    # Constants that are made once and kept are computed inside the graph instead.
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
    warnings.filterwarnings("ignore", module=r"torch\._inductor\.")  # advice to give up exact float32, and the like
    for part in dict.fromkeys(part for backbone in backbones for block in backbone.blocks for part in _parts(block)):
        # All batches of a rank have one size, in evaluation too, so shapes are constants.
        part.compile(backend=BACKEND, fullgraph=True, dynamic=False, recompile_limit=MOST_GRAPHS)


def _parts(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the block if it can be one graph, or else those of its layers without experts that are worth a graph."""
    if all(layer.never_waits() for layer in block.modules() if isinstance(layer, MoELayer)):
        yield block
        return
    for child in block.children():
        modules = list(child.modules())
        if len(modules) > 1 and not any(isinstance(module, MoELayer) for module in modules):
            yield child
