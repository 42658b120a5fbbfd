"""Brings the weights of a model of text to shorter rows, as fine-tuning on sentences follows training on documents.

Of gMLP's Toeplitz matrices the distances are kept that a shorter row has, of BERT's positions the first ones. Weights
that mix tokens in MLPs or experts fit one length alone.
"""

import re
from pathlib import Path

from torch import Tensor

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models.text_spec import TextSpec

_BIAS = re.compile(r"blocks\.[0-9]+\.gate\.spatial\.bias")
_WEIGHT = re.compile(r"blocks\.[0-9]+\.gate\.spatial\.weight")
_FIXED = re.compile(r"blocks\.[0-9]+\.moe_s\..+")


def fit(tensors: dict[str, Tensor], spec: TextSpec, file: str | Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Cut weights to the model's rows.

    Args:
        tensors: Weights under this package's names.
        spec: The model.
        file: Where the weights come from, for messages.

    Returns the tensors, and the names of those that were cut. Raises UserError if the model's rows are longer, or if
    weights fit one length alone.
    """
    before, after = _length(tensors), spec.length
    if before in (None, after):
        return tensors, ()
    assert before is not None
    fixed = next((name for name in tensors if _FIXED.fullmatch(name)), None)
    if fixed or before < after:
        why = f"'{fixed}' fits one length alone" if fixed else "they can only become shorter"
        raise UserError(
            f"{file}: weights for rows of {before} tokens, the model's have {after}, and {why}; "
            f"set model.length: {before}, or give different weights"
        )
    cut = {name: part for name, tensor in tensors.items() if (part := _cut(name, tensor, before, after)) is not None}
    return tensors | cut, tuple(cut)


def _length(tensors: dict[str, Tensor]) -> int | None:
    """Return the tokens of a row that weights were made for; None if no tensor tells."""
    return next((len(t) for name, t in tensors.items() if t.ndim and (name == "positions" or _BIAS.match(name))), None)


def _cut(name: str, tensor: Tensor, before: int, after: int) -> Tensor | None:
    """Return a tensor for rows of `after` tokens, None if it does not depend on the length."""
    if name == "positions" or _BIAS.fullmatch(name):
        return tensor[:after].clone()
    if _WEIGHT.fullmatch(name):  # of the distances -(n - 1) to n - 1
        return tensor[..., before - after : before + after - 1].clone()
    return None
