"""Writes an export: a folder that is complete or does not exist."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sparse_mlp_ds import files
from sparse_mlp_ds.data.text_format import TOKENIZER
from sparse_mlp_ds.errors import UserError, one_line
from sparse_mlp_ds.hub.card import NAME, card_text
from sparse_mlp_ds.hub.config import AnyConfig, TextConfig, read
from sparse_mlp_ds.weights.locate import CONFIG, GRAPHS, WEIGHTS

FILES = frozenset({CONFIG, WEIGHTS, NAME, TOKENIZER, *GRAPHS.values(), f"{GRAPHS['onnx']}.data"})
"""Names of the files that an export may have."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_target(out: Path) -> None:
    """Check that an export can be written to `out`: it does not exist, is an empty folder, or an earlier export.

    Raises UserError if it is anything else, which would be lost.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: a file; give a folder")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - FILES):
        raise UserError(f"{out}: exists and is no export, it holds {foreign[0]!r}; give a different folder")
    if names:
        try:
            read(out / CONFIG)
        except UserError:
            raise UserError(f"{out}: exists and is no sound export; remove it, or give a different folder") from None


def write_export(out: Path, config: AnyConfig, weights: dict[str, Tensor], tokenizer: bytes | None = None) -> Path:
    """Write model.safetensors, config.json and README.md to the folder `out`, in place of an earlier export.

    Args:
        out: The folder.
        config: The model as data.
        weights: All of the model's, by the model's own names.
        tokenizer: Content of the tokenizer's file of a model of text, which is written too.

    The same model gives the same bytes. Returns `out`. Raises UserError if the export cannot be written; what was there
    is unchanged then.
    """

    def write(partial: Path) -> None:
        save_file(_stored(weights, config.dtype), partial / WEIGHTS, metadata={"format": "pt"})
        (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)  # safetensors makes it readable for its owner only

    return write_folder(out, config, write, tokenizer=tokenizer)


def write_folder(
    out: Path,
    config: AnyConfig,
    write: Callable[[Path], None],
    format: str = "safetensors",
    tokenizer: bytes | None = None,
) -> Path:
    """Write an export of any format to the folder `out`, in place of an earlier export.

    Args:
        out: The folder.
        config: The model as data.
        write: Writes the file of the model into the folder that it is given, which has config.json already.
        format: What the file is: `safetensors`, `onnx` or `pt2`.
        tokenizer: Content of the tokenizer's file of a model of text.

    Returns `out`. Raises UserError if the export cannot be written; what was there is unchanged then, as after any
    other exception.
    """
    check_target(out)
    if isinstance(config, TextConfig) and (tokenizer is None or config.text is None):
        raise UserError(
            f"{out}: a model of text is exported with its tokenizer, and there is none beside its weights; give the "
            f"{TOKENIZER} of its data, on the command line with --tokenizer FILE"
        )
    final = Path(os.path.realpath(out))
    partial, old = (final.with_name(f".{final.name}.{what}.{os.getpid()}") for what in ("partial", "old"))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        (partial / CONFIG).write_text(config.as_json(), encoding="utf-8")
        (partial / NAME).write_text(card_text(config, format), encoding="utf-8")
        if tokenizer is not None:
            (partial / TOKENIZER).write_bytes(tokenizer)
        write(partial)
        for path in partial.iterdir():
            files.sync(path)
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
    except SafetensorError as error:  # for whatever the system refuses
        raise UserError(f"{out}: cannot be written ({one_line(error)})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return out


def _stored(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the tensors on the CPU, in the order of their names and in the data types that the file has."""
    return {
        name: weights[name].to("cpu", torch.float32 if ".router." in name else _DTYPES[dtype]).contiguous()
        for name in sorted(weights)
    }
