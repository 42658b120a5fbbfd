"""The tokenizer's file of a model: it is compared with its hash before anything looks into it."""

from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.errors import UserError

LARGEST = 1 << 26
"""Most bytes of a tokenizer's file; one of 32,000 pieces has a hundredth of it."""


def read(path: Path, sha256: str | None) -> bytes:
    """Return the content of a tokenizer's file.

    sha256: hash that the file must have; None accepts any. Raises UserError.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: more than {LARGEST >> 20} MiB, which no tokenizer has; give a different file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the tokenizer.model of the model's data") from None
    if sha256 not in (None, files.sha256_of([content])):
        raise UserError(f"{path}: not the tokenizer that the model was trained with; give that of its data")
    return content
