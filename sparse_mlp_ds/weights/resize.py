"""Resizes token-mixing weights to a different patch grid.

A Mixer or ResMLP is tied to its number of patches: token-mixing weights have an axis of length S, or of length S1
inside a sparse block. Nothing else depends on the resolution, because there are no position embeddings. The S patches
are a square grid in row-major order. There are three modes:

`bilinear` and `bicubic` interpolate. An axis that *reads* patches gets to read the new grid, interpolated to the old
one: w' = w P with P [old, new]. An axis that *writes* patches writes the old grid, interpolated to the new one:
w' = Q w with Q [new, old]. The rows of P and Q sum to 1. So an image whose tokens are all equal gives exactly the
pre-activations and gate logits that it gave before (interpolating w and scaling it by old / new achieves that only on
average), and a constant output stays constant. The interpolation is antialiased, so that every patch counts when a grid
shrinks.

`block` is MLP-Mixer's own rule (appendix on higher resolutions) for a grid that is K times as fine on each side: S and
the hidden width grow by K^2, and the weights are copied block-diagonally. Here each block takes one of K x K square
windows of the grid; the paper only speaks of equal parts. A router takes the mean over windows.

The S1 inner patches of a sparse block are kept if the model has as many. Otherwise S1 must be the same whole multiple
of S before and after (2 in the paper), and is resized as that many grids, one after the other. NOTE: between
re-represent layers the order of the inner patches is learnt and they have no neighbours, so interpolating over them is
only a start; it is better to keep `sparse_tokens` unchanged.
"""

import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.spec import MixerSpec, ResMlpSpec

MODES = ("bilinear", "bicubic", "block")
"""The ways of resizing, see the module."""

_AXES = {
    r"mlp_tokens\.fc1\.weight": ("hidden", "reads S"),
    r"mlp_tokens\.fc1\.bias": ("hidden",),
    r"mlp_tokens\.fc2\.weight": ("writes S", "hidden"),
    r"mlp_tokens\.fc2\.bias": ("writes S",),
    r"tokens\.weight": ("writes S", "reads S"),
    r"tokens\.bias": ("writes S",),
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
"""Name of a tensor in a block (a pattern) -> what each of its axes stands for."""


def to_patches(
    tensors: dict[str, Tensor], spec: MixerSpec | ResMlpSpec, file: str | Path, mode: str = "bilinear"
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Resize token-mixing weights to the patch grid of a model.

    Args:
        tensors: Weights under this package's names.
        spec: The model.
        file: Where the weights come from, for messages.
        mode: One of `MODES`.

    Returns all tensors, and the names of those that were resized. Raises UserError where no rule applies.
    """
    if mode not in MODES:
        raise UserError(f"{file}: no way '{mode}' of resizing; {did_you_mean(mode, MODES)}")
    axes = {name: axes for name in tensors if (axes := _axes(name)) and not _reads_chunks(name, spec)}
    old = _sizes(tensors, axes, file)
    if not old:
        return tensors, ()
    new = old | {"S": spec.tokens}
    if isinstance(spec, MixerSpec) and spec.sparse_blocks:
        new["S1"] = spec.inner[0]
    changed = {kind for kind in old if old[kind] != new[kind]}
    if not changed:
        return tensors, ()
    if router := next((name for name in tensors if "S1" in changed and _reads_chunks(name, spec)), None):
        raise UserError(f"{file}: '{router}' reads chunks of channels, which are not resized; keep model.sparse_tokens")
    grids = {"S": 1, "S1": _grids(old, new, file) if "S1" in changed else 1}
    side = lambda sizes, kind: side_of(sizes[kind] // grids[kind], file)  # noqa: E731
    sides = {kind: (side(old, kind), side(new, kind)) for kind in changed}

    if mode == "block":
        positions = _block_positions(sides, grids, old, file)
        resized = {name: _block(tensors[name], axes[name], positions) for name in axes}
    else:
        matrices = _matrices(sides, grids, mode)
        touched = [name for name in axes if any(axis in matrices for axis in axes[name])]
        resized = {name: _interpolate(tensors[name], axes[name], matrices) for name in touched}
    return tensors | resized, tuple(resized)


def interpolation(before: int, after: int, mode: str) -> Tensor:
    """Return the matrix [after^2, before^2] that interpolates a square grid of side `before` to one of side `after`.

    mode: `bilinear` or `bicubic`.
    """
    signals = torch.eye(before**2, dtype=torch.float64).view(-1, 1, before, before)  # one signal for each patch
    # NOTE: whole grids, not one axis after the other: with antialiasing, torch 2.13 interpolates images of width 1
    # wrongly on the CPU.
    result = F.interpolate(signals, size=(after, after), mode=mode, align_corners=False, antialias=True)
    return result.view(before**2, after**2).T.contiguous()


def _matrices(sides: dict[str, tuple[int, int]], grids: dict[str, int], mode: str) -> dict[str, Tensor]:
    """Return what an axis stands for -> the matrix [new, old] that resizes it.

    Args:
        sides: S or S1 -> side of one grid before and after.
        grids: S or S1 -> number of grids.
        mode: `bilinear` or `bicubic`.
    """
    matrices = {}
    for kind, (before, after) in sides.items():
        stack = torch.eye(grids[kind], dtype=torch.float64)
        matrices[f"writes {kind}"] = torch.kron(stack, interpolation(before, after, mode))
        matrices[f"reads {kind}"] = torch.kron(stack, interpolation(after, before, mode).T.contiguous())
    return matrices


def _interpolate(tensor: Tensor, axes: tuple[str, ...], matrices: dict[str, Tensor]) -> Tensor:
    result = tensor.double()
    for dim, axis in enumerate(axes):
        if axis in matrices:
            result = torch.tensordot(matrices[axis], result, ([1], [dim])).movedim(0, dim)
    return result.float().contiguous()


def _block_positions(
    sides: dict[str, tuple[int, int]], grids: dict[str, int], old: dict[str, int], file: str | Path
) -> dict[str, Tensor]:
    """Return for S and S1 the new positions [K^2, old] of the patches of each window, in their old order.

    Args:
        sides: S or S1, where they change -> side of one grid before and after.
        grids: S or S1 -> number of grids.
        old: S, and S1 if there are sparse blocks, in the file.
        file: Where the weights come from, for messages.
    """
    factors = {after / before for before, after in sides.values()}
    factor = factors.pop()
    if factors or factor != int(factor) or len(sides) < len({"S", "S1"} & old.keys()):
        shown = ", ".join(f"{before} to {after} for {kind}" for kind, (before, after) in sorted(sides.items()))
        raise UserError(
            f"{file}: 'block' needs sides that grow by one whole factor, for S1 too if there is one, not {shown}; "
            "choose a different image_size and sparse_tokens, or resize bilinear"
        )
    positions = {}
    for kind, (before, after) in sides.items():
        windows = torch.arange(after**2).view(int(factor), before, int(factor), before)
        windows = windows.transpose(1, 2).reshape(-1, before**2)  # [K^2, before^2]
        positions[kind] = torch.cat([windows + grid * after**2 for grid in range(grids[kind])], dim=1)
    return positions


def _block(tensor: Tensor, axes: tuple[str, ...], positions: dict[str, Tensor]) -> Tensor:
    """Return a tensor of one or two axes copied block-diagonally. positions: see `_block_positions`."""
    count = len(next(iter(positions.values())))  # K^2
    by_axis: list[Tensor | None] = []  # new positions [K^2, old] of each axis, None for an axis that does not grow
    for axis, size in zip(axes, tensor.shape, strict=True):
        if axis == "hidden":
            by_axis.append(torch.arange(count * size).view(count, size))
        else:
            by_axis.append(positions.get(axis.split()[-1]))
    shape = [size if new is None else new.numel() for size, new in zip(tensor.shape, by_axis, strict=True)]
    result = tensor.new_zeros(shape)
    rows, columns = by_axis[0], by_axis[-1]
    for window in range(count):
        if rows is None:  # a router's experts: the mean over windows
            assert columns is not None
            result[:, columns[window]] = tensor / count
        elif tensor.ndim == 1:
            result[rows[window]] = tensor
        else:
            assert columns is not None
            result[rows[window][:, None], columns[window]] = tensor
    return result


def _reads_chunks(name: str, spec: MixerSpec | ResMlpSpec) -> bool:
    """Return whether a tensor is the router of an MoE_S whose items are chunks of several channels."""
    moe_s = getattr(spec, "moe_s", None)
    return name.endswith("moe_s.router.weight") and moe_s is not None and moe_s.chunk > 1


def _axes(name: str) -> tuple[str, ...] | None:
    """Return what the axes of a tensor stand for, None if its shape does not depend on the patch grid."""
    block = re.fullmatch(r"blocks\.[0-9]+\.(.+)", name)
    return next((axes for pattern, axes in _AXES.items() if block and re.fullmatch(pattern, block[1])), None)


def _sizes(tensors: dict[str, Tensor], axes: dict[str, tuple[str, ...]], file: str | Path) -> dict[str, int]:
    """Return the S of the file and, if it has sparse blocks, S1. Raises UserError if two tensors disagree.

    axes: name of a tensor -> what its axes stand for.
    """
    sizes: dict[str, int] = {}
    for name, kinds in axes.items():
        shape = list(tensors[name].shape)
        if len(shape) != len(kinds):
            raise UserError(f"{file}: '{name}' is of shape {shape}, it should have {len(kinds)} axes")
        for axis, size in zip(kinds, shape, strict=True):
            kind = axis.split()[-1]
            if kind in ("S", "S1") and sizes.setdefault(kind, size) != size:
                raise UserError(f"{file}: '{name}' is of shape {shape}, the others have {sizes[kind]} patches")
    return {"S": sizes["S1"]} | sizes if "S1" in sizes else sizes


def _grids(old: dict[str, int], new: dict[str, int], file: str | Path) -> int:
    """Return how many grids the inner patches are, S1 / S, which must not change."""
    count = old["S1"] // old["S"]
    if count * old["S"] != old["S1"] or count * new["S"] != new["S1"]:
        whole = f" or to {count * new['S']}" if count * old["S"] == old["S1"] else ""
        raise UserError(
            f"{file}: {old['S1']} inner patches for {old['S']} outer ones, the model has {new['S1']} for {new['S']}, "
            f"not the same whole number of grids; set model.sparse_tokens to {old['S1']}, which is kept as it is{whole}"
        )
    return count


def side_of(patches: int, file: str | Path) -> int:
    """Return the side of a square grid of that many patches."""
    side = math.isqrt(patches)
    if side**2 != patches:
        raise UserError(f"{file}: {patches} patches are not a square grid; use weights of a square image size")
    return side
