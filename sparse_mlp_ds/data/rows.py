"""What a loader process makes of a stored row of tokens."""

from dataclasses import dataclass

import numpy as np

from sparse_mlp_ds.data.bad_samples import READ, UNDECODABLE, BadSampleError
from sparse_mlp_ds.data.text_format import TextFormat


@dataclass(frozen=True)
class Rows:
    """Makes token numbers from the stored rows of a text data set."""

    text: TextFormat
    """What the rows are."""

    def decode(self, content: bytes, number: int = 0) -> np.ndarray:
        """Return the tokens of a row, [n] int64.

        Args:
            content: The row's bytes, as they are stored.
            number: Not used: nothing about a row is drawn at random here.

        Raises BadSampleError.
        """
        if len(content) != self.text.row_bytes:
            raise BadSampleError(READ, f"is a row of {len(content)} bytes, the index says {self.text.row_bytes}")
        tokens = np.frombuffer(content, self.text.dtype)
        if (largest := int(tokens.max())) >= self.text.vocabulary:
            raise BadSampleError(UNDECODABLE, f"has token {largest}, outside the vocabulary of {self.text.vocabulary}")
        return tokens.astype(np.int64)

    def blank(self) -> np.ndarray:
        """Return what takes a bad row's place where it is masked, [n] int64."""
        return np.full(self.text.length, self.text.special["pad"], np.int64)
