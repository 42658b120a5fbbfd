"""Writing an export: a folder that is whole or is not there."""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub.card import NAME, text
from sparse_mlp_ds.hub.config import ModelConfig, read
from sparse_mlp_ds.weights.places import CONFIG, WEIGHTS

FILES = frozenset({CONFIG, WEIGHTS, NAME})
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check(out: Path) -> None:
    """Raise UserError if an export cannot be written to `out`: something else is there, which would be lost."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file; give a folder")
    there = {path.name for path in out.iterdir()}
    if other := sorted(there - FILES):
        raise UserError(f"{out}: exists and is no export, it holds {other[0]!r}; give another folder")
    if there:
        try:
            read(out / CONFIG)
        except UserError:
            raise UserError(f"{out}: exists and is no sound export; remove it, or give another folder") from None


def write(out: Path, config: ModelConfig, weights: dict[str, Tensor]) -> Path:
    """Write model.safetensors, config.json and README.md to `out`, in place of an earlier export.

    weights: by the model's own names. The same model gives the same bytes. Raises UserError, and leaves what was there.
    """
    check(out)
    final = Path(os.path.realpath(out))
    partial, old = (final.with_name(f".{final.name}.{what}.{os.getpid()}") for what in ("partial", "old"))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        save_file(_stored(weights, config.dtype), partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(config.text())
        (partial / NAME).write_text(text(config))
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)  # safetensors lets its owner alone read it
        for name in FILES:
            files.sync(partial / name)
        if final.exists():
            final.rename(old)
        try:
            partial.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
        files.sync(final.parent)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return out


def _stored(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return tensors as they go into the file, in the order of their names."""
    return {
        name: weights[name].to("cpu", torch.float32 if ".router." in name else _DTYPES[dtype]).contiguous()
        for name in sorted(weights)
    }
