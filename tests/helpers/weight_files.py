"""Small Mixers with random weights, and the files that hold them in every layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.spec import MixerSpec

DENSE = MixerSpec(
    family="mixer", image_size=16, patch_size=4, width=12, token_hidden=10, channel_hidden=20, dense_blocks=3
)
SPARSE = DENSE.model_copy(
    update={
        "family": "sparse_mlp",
        "dense_blocks": 2,
        "sparse_blocks": 1,
        "sparse_tokens": 32,
        "sparse_width": 6,
        "moe_s": MoESpec(experts=3, hidden=14),
        "moe_c": MoESpec(experts=2, top_k=2, hidden=8),
    }
)


def make(spec, seed=0, classes=5):
    """A model all of whose tensors are random, norms, biases and head too."""
    model = registry.build(spec, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logits(model, size=16):
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)[0]


def as_timm(tensors):
    return {name.replace("patch_embed.", "stem."): tensor for name, tensor in tensors.items()}


def as_google(tensors):
    """Flax's names and axes, written independently of the translation under test."""
    arrays = {}
    for name, tensor in tensors.items():
        module, leaf = name.rsplit(".", 1)
        flax_leaf = "bias" if leaf == "bias" else "scale" if "norm" in module else "kernel"
        array = tensor.numpy()
        if flax_leaf == "kernel":
            array = np.einsum("oihw->hwio", array) if array.ndim == 4 else np.einsum("oi->io", array)
        parts = module.split(".")
        if parts[0] == "blocks":
            inner = {
                "norm1": "LayerNorm_0",
                "norm2": "LayerNorm_1",
                "mlp_tokens.fc1": "token_mixing/Dense_0",
                "mlp_tokens.fc2": "token_mixing/Dense_1",
                "mlp_channels.fc1": "channel_mixing/Dense_0",
                "mlp_channels.fc2": "channel_mixing/Dense_1",
            }[".".join(parts[2:])]
            flax = f"MixerBlock_{parts[1]}/{inner}"
        else:
            flax = {"patch_embed.proj": "stem", "norm": "pre_head_layer_norm", "head": "head"}[module]
        arrays[f"{flax}/{flax_leaf}"] = array
    return arrays


def write(folder: Path, layout, tensors) -> Path:
    path = folder / f"{layout}.{'npz' if layout == 'google' else 'safetensors'}"
    if layout == "google":
        np.savez(path, **as_google(tensors))
    elif layout == "timm":
        save_file(as_timm(tensors), path)
    elif layout == "wrapped":
        extra = {"projector.0.weight": torch.ones(2, 2)}
        save_file({f"backbone.{name}": tensor for name, tensor in tensors.items()} | extra, path)
    else:
        save_file(tensors, path)
    return path


def refused(*parts, call, path) -> str:
    """The one line of the UserError that `call` raises; it names the file and all of `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and line.isprintable(), repr(line)
    assert all(part in line for part in (str(path), *parts)), line
    return line
