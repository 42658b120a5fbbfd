"""Token-mixing weights on another patch grid.

A Mixer is tied to its patch count: token-mixing weights have an axis of length S, or S1 inside a sparse block. Nothing
else depends on the resolution (there are no position embeddings). S patches are a square grid in row-major order.

`bilinear`, `bicubic`: an axis that *reads* patches reads the new grid interpolated to the old one, w' = w P with
P [old, new]; an axis that *writes* patches writes the old grid interpolated to the new one, w' = Q w with Q [new, old].
The rows of P and Q sum to 1. So a constant image of tokens gives exactly the pre-activations and gate logits it gave
before (interpolating w and scaling it by old / new achieves that only on average), and a constant output stays
constant. Antialiased, so that no patch is overlooked when a grid shrinks.

`block`: MLP-Mixer's own rule (appendix on higher resolutions) for a grid K times as fine on a side: S and the hidden
width grow by K^2 and the weights are copied block-diagonally. Each block takes one of K x K square windows; the paper
says no more than equal parts. A gate takes the mean over windows.

S1 inside a sparse block is kept where the model keeps it. Where it changes it must be the same whole number of grids
before and after (2 in the paper), and counts as that many grids one after the other. NOTE: with re-represent layers the
order of the inner patches is learnt, they have no neighbours, and interpolating over them is no more than a start; it
is better to keep `sparse_tokens` as it is.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.spec import MixerSpec

MODES = ("bilinear", "bicubic", "block")

_AXES = {
    r"mlp_tokens\.fc1\.weight": ("hidden", "reads S"),
    r"mlp_tokens\.fc1\.bias": ("hidden",),
    r"mlp_tokens\.fc2\.weight": ("writes S", "hidden"),
    r"mlp_tokens\.fc2\.bias": ("writes S",),
    r"moe_s\.(experts\.[0-9]+\.)?fc1\.weight": ("hidden", "reads S1"),
    r"moe_s\.(experts\.[0-9]+\.)?fc1\.bias": ("hidden",),
    r"moe_s\.(experts\.[0-9]+\.)?fc2\.weight": ("writes S1", "hidden"),
    r"moe_s\.(experts\.[0-9]+\.)?fc2\.bias": ("writes S1",),
    r"moe_s\.router\.weight": ("experts", "reads S1"),
    r"rerepresent1\.tokens\.weight": ("writes S1", "reads S"),
    r"rerepresent1\.tokens\.bias": ("writes S1",),
    r"rerepresent2\.tokens\.weight": ("writes S", "reads S1"),
    r"rerepresent2\.tokens\.bias": ("writes S",),
}
"""What the axes of each tensor of a block stand for."""


def to_patches(
    tensors: dict[str, Tensor], spec: MixerSpec, file: str | Path, mode: str = "bilinear"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Bring token-mixing weights to the grid of `spec`. file: for messages.

    Returns all tensors and the names of those that changed. Raises UserError where no rule applies.
    """
    if mode not in MODES:
        raise UserError(f"{file}: no way '{mode}' of resizing; {did_you_mean(mode, MODES)}")
    axes = {name: found for name in tensors if (found := _axes(name))}
    old = _sizes(tensors, axes, file)
    if not old:
        return tensors, ()
    new = {"S": spec.tokens, "S1": spec.inner[0] if spec.sparse_blocks else old.get("S1")}
    changed = {kind for kind in old if old[kind] != new[kind]}
    if not changed:
        return tensors, ()
    grids = {"S": 1, "S1": _grids(old, new, file) if "S1" in changed else 1}
    sides = {kind: (_side(old[kind] // grids[kind], file), _side(new[kind] // grids[kind], file)) for kind in changed}

    if mode == "block":
        indices = _block_indices(sides, grids, old, file)
        done = {name: _block(tensors[name], axes[name], indices) for name in axes}
    else:
        matrices = {}
        for kind in changed:
            before, after = sides[kind]
            stack = torch.eye(grids[kind], dtype=torch.float64)
            matrices[f"writes {kind}"] = torch.kron(stack, interpolation(before, after, mode))
            matrices[f"reads {kind}"] = torch.kron(stack, interpolation(after, before, mode).T.contiguous())
        touched = [name for name in axes if any(axis in matrices for axis in axes[name])]
        done = {name: _interpolate(tensors[name], axes[name], matrices) for name in touched}
    return tensors | done, tuple(done)


def interpolation(before: int, after: int, mode: str) -> Tensor:
    """Return the matrix [after^2, before^2] that interpolates a grid of side `before` to one of side `after`."""
    signals = torch.eye(before**2, dtype=torch.float64).view(-1, 1, before, before)  # one for each patch
    # NOTE: whole grids, not lines: antialiased, torch 2.13 interpolates images of width 1 wrongly on the CPU.
    result = F.interpolate(signals, size=(after, after), mode=mode, align_corners=False, antialias=True)
    return result.view(before**2, after**2).T.contiguous()


def _interpolate(tensor: Tensor, axes: tuple[str, ...], matrices: dict[str, Tensor]) -> Tensor:
    result = tensor.double()
    for dim, axis in enumerate(axes):
        if axis in matrices:
            result = torch.tensordot(matrices[axis], result, ([1], [dim])).movedim(0, dim)
    return result.float().contiguous()


def _block_indices(sides, grids, old, file) -> dict[str, Tensor]:
    """Return for S and S1 the new positions [K^2, old] of each window's patches, in their old order."""
    factors = {after / before for before, after in sides.values()}
    factor = factors.pop()
    if factors or factor != int(factor) or len(sides) < len({"S", "S1"} & old.keys()):
        shown = ", ".join(f"{before} to {after} for {kind}" for kind, (before, after) in sorted(sides.items()))
        raise UserError(
            f"{file}: 'block' needs sides that grow by one whole factor, for S1 too if there is one, not {shown}; "
            "choose another image_size and sparse_tokens, or resize bilinear"
        )
    indices = {}
    for kind, (before, after) in sides.items():
        windows = torch.arange(after**2).view(int(factor), before, int(factor), before)
        windows = windows.transpose(1, 2).reshape(-1, before**2)  # [K^2, before^2]
        indices[kind] = torch.cat([windows + grid * after**2 for grid in range(grids[kind])], dim=1)
    return indices


def _block(tensor: Tensor, axes: tuple[str, ...], indices: dict[str, Tensor]) -> Tensor:
    windows = len(next(iter(indices.values())))  # K^2
    places = []  # for each axis the new positions [K^2, old], or None for an axis that does not grow
    for axis, size in zip(axes, tensor.shape, strict=True):
        if axis == "hidden":
            places.append(torch.arange(windows * size).view(windows, size))
        else:
            places.append(indices.get(axis.split()[-1]))
    shape = [size if place is None else place.numel() for size, place in zip(tensor.shape, places, strict=True)]
    result = tensor.new_zeros(shape)
    for window in range(windows):
        if tensor.ndim == 1:
            result[places[0][window]] = tensor
        elif places[0] is None:
            result[:, places[1][window]] = tensor / windows
        else:
            result[places[0][window][:, None], places[1][window]] = tensor
    return result


def _axes(name: str) -> tuple[str, ...] | None:
    block = re.fullmatch(r"blocks\.[0-9]+\.(.+)", name)
    return next((axes for pattern, axes in _AXES.items() if block and re.fullmatch(pattern, block[1])), None)


def _sizes(tensors: dict[str, Tensor], axes: dict[str, tuple[str, ...]], file) -> dict[str, int]:
    """Return the file's S and, if it has sparse blocks, S1; every tensor must agree."""
    sizes: dict[str, int] = {}
    for name, found in axes.items():
        shape = list(tensors[name].shape)
        if len(shape) != len(found):
            raise UserError(f"{file}: '{name}' is of shape {shape}, it should have {len(found)} axes")
        for axis, size in zip(found, shape, strict=True):
            kind = axis.split()[-1]
            if kind in ("S", "S1") and sizes.setdefault(kind, size) != size:
                raise UserError(f"{file}: '{name}' is of shape {shape}, the others have {sizes[kind]} patches")
    return {"S": sizes["S1"]} | sizes if "S1" in sizes else sizes


def _grids(old: dict[str, int], new: dict[str, int], file) -> int:
    """Return how many grids S1 is, before and after."""
    count = old["S1"] // old["S"]
    if count * old["S"] != old["S1"] or count * new["S"] != new["S1"]:
        whole = f" or to {count * new['S']}" if count * old["S"] == old["S1"] else ""
        raise UserError(
            f"{file}: {old['S1']} inner patches for {old['S']} outer ones, the model has {new['S1']} for {new['S']}, "
            f"not the same whole number of grids; set model.sparse_tokens to {old['S1']}, which is kept as it is{whole}"
        )
    return count


def _side(patches: int, file) -> int:
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{file}: {patches} patches are not a square grid; use weights of a square image size")
    return side
