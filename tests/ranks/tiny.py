"""The smallest models of each family, and steps of them that a test can compare between topologies."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from sparse_mlp_ds import dist, rng
from sparse_mlp_ds.ds_config import Batch
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, MoESpec, PatchSpec, VitSpec, WideNetSpec
from sparse_mlp_ds.recipe import MoE
from sparse_mlp_ds.stages import Optimizer
from sparse_mlp_ds.train import checkpoint, engine, state

IMAGES = 16
CLASSES = 5


def spec(top_k: int = 2, family: str = "sparse_mlp", experts_s: int = 4) -> PatchSpec:
    """4 patches, 4 experts of each kind where the family has experts, stochastic depth and dropout on."""
    shape = {"family": family, "image_size": 8, "patch_size": 4, "width": 16, "drop_path": 0.3, "dropout": 0.1}
    moe_s = MoESpec(experts=experts_s, top_k=top_k, hidden=16)
    moe_c = MoESpec(experts=4, top_k=top_k, hidden=24)
    mixer = {"token_hidden": 8, "channel_hidden": 32}
    transformer = {"depth": 2, "heads": 2}
    match family:
        case "sparse_mlp":
            inner = {"sparse_blocks": 1, "sparse_tokens": 8, "sparse_width": 12, "moe_s": moe_s, "moe_c": moe_c}
            return MixerSpec(**shape, **mixer, dense_blocks=1, **inner)
        case "mixer":
            return MixerSpec(**shape, **mixer, dense_blocks=2)
        case "gmlp" | "amlp":
            return GmlpSpec(**shape, depth=2, hidden=24, attention=8)
        case "vit":
            return VitSpec(**shape, **transformer, pool="cls", channel_hidden=32)
        case "vmoe":
            return VitSpec(**shape, **transformer, pool="mean", channel_hidden=32, moe_c=moe_c)
        case "widenet":
            return WideNetSpec(**shape, **transformer, pool="mean", moe_c=moe_c)
    raise ValueError(family)


def model(
    ep_size: int | dict[str, int], top_k: int = 2, family: str = "sparse_mlp", experts_s: int = 4, **moe: Any
) -> torch.nn.Module:
    """Build one with experts on ep_size ranks (by mixing type, if they differ).

    Its head is drawn too: a zero head would hide the backbone's gradients.
    """
    routing = MoE(**{"group_images": 4, "capacity_factor_s": 1.0, "capacity_factor_c": 0.75} | moe)
    sizes = ep_size if isinstance(ep_size, dict) else {"moe_s": ep_size, "moe_c": ep_size}
    made = registry.build(spec(top_k, family, experts_s), CLASSES, engine.expert_parallel(routing, sizes))
    init_weights(made, seed=1)
    torch.manual_seed(2)
    torch.nn.init.normal_(made.head.weight)
    engine.join_expert_groups(made)
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """The same global batch on every rank: images [16, 3, 8, 8] and labels [16]."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(IMAGES, 3, 8, 8, generator=generator), torch.arange(IMAGES) % CLASSES


def build_engine(
    ep_size: int | dict[str, int],
    zero: int,
    top_k: int = 2,
    family: str = "sparse_mlp",
    experts_s: int = 4,
    group_images: int = 4,
    clip: float = 0.05,
    optimizer: str = "adamw",
    **ds: Any,
):
    """An engine of the tiny model on this rank's share of the batch."""
    config = {"zero_optimization": {"stage": zero}, "gradient_clipping": clip, **ds}
    share = Batch.over(dist.world_size(), IMAGES, unit=group_images)
    made = model(ep_size, top_k, family, experts_s, group_images=group_images)
    built = engine.build(made, Optimizer(name=optimizer, base_lr=1.0), share, config)
    built.batch = share
    return built


def step(built, number: int) -> tuple[float, float, float]:
    """One optimizer step; returns the global objective, the balance loss and the gradient norm."""
    images, labels = batch()
    here, world = dist.rank(), dist.world_size()
    mine, weight = list(built.batch.share(here, world)), built.batch.weight(here, world)
    keys = rng.sample_keys(7, torch.arange(IMAGES) + number * IMAGES, "test")[mine]
    engine.set_learning_rate(built, 1e-2)
    logits, reports = built(images[mine].to(built.module.head.weight.dtype), keys)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[mine])
    balance = sum((report.balance for report in reports.values()), torch.zeros(()))
    built.backward(weight * (loss + balance))
    built.step()
    sums = dist.all_reduce(weight * torch.stack([loss.detach(), balance.detach()])) / world
    return *sums.tolist(), built.gradient_norms.read()["grad_norm"]


def gather(parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every rank's parameters in one dictionary, experts of all ranks included."""
    own = {name: value.detach().float().clone() for name, value in parameters.items()}
    everyone: list[Any] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(everyone, own)
    return {name: value for part in everyone for name, value in part.items()}


def save(built, folder: Path, number: int) -> Path:
    """Write a checkpoint of the engine."""
    about = {"progress": {"stage_step": number}, "recipe": {}}
    return checkpoint.save(folder, number, state.pieces(built, None), about).path


def restore(built, path: Path) -> None:
    """Continue from a checkpoint."""
    found = checkpoint.open_checkpoint(path)
    state.restore(built, None, checkpoint.Reader(found), found.progress["stage_step"])


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    read = checkpoint.Reader(checkpoint.open_checkpoint(path))
    shapes = json.loads((path / checkpoint.MANIFEST).read_text())["tensors"]
    return {name: read(name, 0, int(torch.Size(shape).numel())).view(shape) for name, shape in shapes.items()}
