"""The smallest models of each family, and steps of them that a test can compare between topologies."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from sparse_mlp_ds import rng
from sparse_mlp_ds.checkpoints import manifest, writer
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import ModelSpec, MoESpec
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, ResMlpSpec, VitSpec, WideNetSpec
from sparse_mlp_ds.models.text_spec import BertSpec, GmlpTextSpec, MixerTextSpec, TextSpec
from sparse_mlp_ds.train import engine, engine_state

IMAGES = 16
CLASSES = 5


TEXT = ("gmlp_text", "amlp_text", "gmlp_routed", "gmlp_sparse", "bert", "mixer_text")
"""Families of models of text, and variants with experts."""
VOCABULARY, LENGTH = 20, 8


def spec(top_k: int = 2, family: str = "sparse_mlp", experts_s: int = 4) -> ModelSpec:
    """4 patches or 8 tokens, 4 experts of each kind if the family has experts, stochastic depth and dropout on.

    V-MoE's and the sparse gMLP's layers have a shared expert too.
    """
    if family in TEXT:
        return text_spec(top_k, family, experts_s)
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
        case "resmlp":
            return ResMlpSpec(**shape, depth=2, channel_hidden=32, layer_scale=0.5)
        case "deit":
            token = {"pool": "cls", "positions": "learned", "distillation_token": True}
            return VitSpec(**shape | {"family": "vit"}, **transformer, **token, channel_hidden=32)
        case "vit":
            return VitSpec(**shape, **transformer, pool="cls", channel_hidden=32)
        case "vmoe":
            return VitSpec(**shape, **transformer, pool="mean", channel_hidden=32, moe_c=shared(moe_c))
        case "widenet":
            return WideNetSpec(**shape, **transformer, pool="mean", moe_c=moe_c)
    raise ValueError(family)


def shared(moe: MoESpec) -> MoESpec:
    """Return the same experts with a shared one beside them."""
    return moe.model_copy(update={"shared": 8})


def text_spec(top_k: int, family: str, experts_s: int) -> TextSpec:
    """Return the same of a model of text."""
    shape = {"vocabulary": VOCABULARY, "length": LENGTH, "width": 16, "drop_path": 0.3, "dropout": 0.1, "depth": 2}
    moe_s = MoESpec(experts=experts_s, top_k=top_k, hidden=16, chunk=2)
    moe_c = MoESpec(experts=4, top_k=top_k, hidden=24)
    match family:
        case "gmlp_text" | "amlp_text":
            return GmlpTextSpec(family=family, **shape, hidden=24, attention=8)
        case "gmlp_routed":
            return GmlpTextSpec(family="gmlp_text", **shape, hidden=24, moe_c=moe_c)
        case "gmlp_sparse":
            sparse = {"sparse_blocks": 1, "moe_s": shared(moe_s), "moe_c": shared(moe_c)}
            return GmlpTextSpec(family="gmlp_text", **shape, hidden=24, **sparse)
        case "bert":
            return BertSpec(family="bert", **shape, heads=2, channel_hidden=32)
    return MixerTextSpec(family="mixer_text", **shape, token_hidden=8, channel_hidden=32)


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
    for name, parameter in made.named_parameters():
        if name in ("head.weight", "head_dist.weight"):
            torch.nn.init.normal_(parameter)
    engine.join_expert_groups(made)
    return made


def batch(family: str = "sparse_mlp") -> tuple[torch.Tensor, torch.Tensor]:
    """The same global batch on every rank: images [16, 3, 8, 8] or rows of tokens [16, 8], and labels [16]."""
    generator = torch.Generator().manual_seed(3)
    if family in TEXT:
        return torch.randint(VOCABULARY, (IMAGES, LENGTH), generator=generator), torch.arange(IMAGES) % CLASSES
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
    exempt_vectors: bool = True,
    expert_lr_scale: float = 1.0,
    **ds: Any,
):
    """An engine of the tiny model on this rank's share of the batch."""
    config = DeepSpeedJson({"zero_optimization": {"stage": zero}, "gradient_clipping": clip, **ds})
    share = BatchPlan.over(process_group.world_size(), IMAGES, unit=group_images)
    made = model(ep_size, top_k, family, experts_s, group_images=group_images)
    own = {"exempt_vectors": exempt_vectors, "expert_lr_scale": expert_lr_scale}
    section = Optimizer(name=optimizer, base_lr=1.0, **own)
    built = engine.build(made, section, share, config)
    built.batch, built.family = share, family
    return built


def step(built, number: int) -> tuple[float, float, float]:
    """One optimizer step; returns the global objective, the balance loss and the gradient norm."""
    inputs, labels = batch(getattr(built, "family", "sparse_mlp"))
    inputs = inputs if inputs.dtype == torch.int64 else inputs.to(built.module.head.weight.dtype)
    here, world = process_group.rank(), process_group.world_size()
    mine, weight = list(built.batch.share(here, world)), built.batch.weight(here, world)
    keys = rng.sample_keys(7, torch.arange(IMAGES) + number * IMAGES, "test")[mine]
    engine.set_learning_rate(built, 1e-2)
    logits, reports = built(inputs[mine], keys)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[mine])
    balance = sum((report.balance for report in reports.values()), torch.zeros(()))
    built.backward(weight * (loss + balance))
    built.step()
    sums = comm.all_reduce(weight * torch.stack([loss.detach(), balance.detach()])) / world
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
    return writer.save(folder, number, engine_state.pieces(built, None), about).path


def restore(built, path: Path) -> None:
    """Continue from a checkpoint."""
    found = manifest.open_checkpoint(path)
    engine_state.restore(built, None, Reader(found), found.progress["stage_step"])


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, whole."""
    read = Reader(manifest.open_checkpoint(path))
    shapes = json.loads((path / manifest.MANIFEST).read_text())["tensors"]
    return {name: read(name, 0, int(torch.Size(shape).numel())).view(shape) for name, shape in shapes.items()}
