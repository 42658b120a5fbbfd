"""What the rows of a text data set are: how many tokens, of which tokenizer, and how texts were put into them."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

Packing = Literal["documents", "stream", "texts", "spans"]
"""How texts become rows. `documents`: a row is a piece of one document. `stream`: documents are joined and cut.
`texts`: one text or pair of texts a row, padded. `spans`: a question and a window of its context a row, padded."""
SPECIAL = ("pad", "unk", "cls", "sep", "mask")
"""Names of the special tokens: padding, unknown text, beginning of a row, end of a text, and masked place."""
TOKENIZER = "tokenizer.model"
"""Name of the tokenizer's file, which lies beside index.json."""
_LARGEST = 1 << 24  # of a length or vocabulary; more is damage
_MOST_ROWS = 100_000_000  # in a tar; more is damage, and would take the memory of its columns


@dataclass(frozen=True)
class TextFormat:
    """What every row of a text data set is."""

    length: int
    """Number of tokens in a row, n."""
    vocabulary: int
    """Number of different tokens, V; a token is a number from 0 to V - 1."""
    tokenizer: str
    """Hash (sha256, hexadecimal) of the file tokenizer.model by which texts became tokens."""
    special: dict[str, int]
    """Token of each name in SPECIAL."""
    packing: Packing
    """How texts became rows."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "TextFormat":
        """Return what the entry `text` of an index.json describes. Raises ValueError, KeyError or TypeError."""
        text = cls(
            int(record["length"]),
            int(record["vocabulary"]),
            str(record["tokenizer"]),
            {name: int(record["special"][name]) for name in SPECIAL},
            record["packing"],
        )
        if not (3 <= text.length <= _LARGEST and len(SPECIAL) < text.vocabulary <= _LARGEST):
            raise ValueError(f"rows of {text.length} tokens out of {text.vocabulary}")
        if not re.fullmatch("[0-9a-f]{64}", text.tokenizer):
            raise ValueError("the tokenizer has no sha256")
        numbers = set(text.special.values())
        if len(numbers) < len(SPECIAL) or not all(0 <= number < text.vocabulary for number in numbers):
            raise ValueError(f"special tokens {text.special} of {text.vocabulary}")
        if text.packing not in get_args(Packing):
            raise ValueError(f"packing {text.packing!r}")
        return text

    @property
    def dtype(self) -> np.dtype:
        """Type of a token in the tars: the smaller one of uint16 and uint32, little-endian, that holds all tokens."""
        return np.dtype("<u2" if self.vocabulary <= 1 << 16 else "<u4")

    @property
    def row_bytes(self) -> int:
        """Size of a row in the tars, bytes."""
        return self.length * self.dtype.itemsize

    def record(self) -> dict[str, Any]:
        """Return the entry `text` of index.json."""
        return asdict(self)


def row_columns(record: dict[str, Any]) -> dict[str, list[Any]]:
    """Return keys, offsets, sizes and labels of the rows of a tar, from its entry in an index.json.

    Raises ValueError, KeyError or TypeError.
    """
    size, blocks = (
        int(record["row_bytes"]),
        [(str(key), int(first), int(rows)) for key, first, rows in record["blocks"]],
    )
    total = sum(rows for _, _, rows in blocks)
    if size < 1 or any(first < 0 or rows < 0 for _, first, rows in blocks) or total > _MOST_ROWS:
        raise ValueError(f"shard {record['file']!r} has blocks of impossible size")
    return {
        "keys": [f"{key}:{row}" for key, _, rows in blocks for row in range(rows)],
        "offsets": [first + row * size for _, first, rows in blocks for row in range(rows)],
        "sizes": [size] * total,
        "labels": record["labels"] or [-1] * total,
    }


def row_blocks(keys: list[str], offsets: list[int]) -> list[list[Any]]:
    """Return the blocks `[key, offset of the first row, rows]` that rows belong to. Raises ValueError.

    Args:
        keys: Each row's key, as `row_columns` gives it.
        offsets: Where each row starts in the tar, bytes.
    """
    found: list[list[Any]] = []
    for name, offset in zip(keys, offsets, strict=True):
        key, _, row = name.rpartition(":")
        if row == "0":
            found.append([key, offset, 0])
        if not found or found[-1][0] != key or found[-1][2] != int(row):
            raise ValueError(f"row {name!r} does not follow the one before it in its block")
        found[-1][2] += 1
    return found
