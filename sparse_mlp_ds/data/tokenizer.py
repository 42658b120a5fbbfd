"""The tokenizer of a text data set or model: a SentencePiece file. It makes and reads texts; training needs none.

Special tokens are found by their usual names, so that files of other projects can be used where they have all of them.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from sparse_mlp_ds import files
from sparse_mlp_ds.data.text_format import SPECIAL
from sparse_mlp_ds.errors import UserError

PIECES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>", "<s>"),
    "sep": ("[SEP]", "<sep>", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Names under which SentencePiece files have each special token; the first is the one that is written here."""


class Tokenizer:
    """Makes tokens from text, and text from tokens."""

    def __init__(self, path: Path, content: bytes | None = None):
        """Open a SentencePiece file. Raises UserError if it is none, or lacks one of the special tokens.

        path: The file. content: What is in it, if that is known; else the file is read.
        """
        # A missing package is explained by `errors.explained`, which names the extra that it comes with.
        from sentencepiece import SentencePieceProcessor

        fix = "give a SentencePiece model, such as the tokenizer.model of a text data set"
        try:
            self._content = Path(path).read_bytes() if content is None else content
            if not self._content:  # which SentencePiece would take for no model to load
                raise ValueError("empty")
            self._pieces = SentencePieceProcessor(model_proto=self._content)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; {fix}") from None
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: is no tokenizer; {fix}") from None
        self.vocabulary: int = self._pieces.get_piece_size()
        """Number of different tokens, V."""
        self.special: dict[str, int] = {}
        """Token of each name in `text_format.SPECIAL`."""
        for name in SPECIAL:
            # A name that is not there has the token of unknown text.
            found = [token for one in PIECES[name] if self.piece(token := self._pieces.piece_to_id(one)) == one]
            if not found:
                raise UserError(f"{path}: has no token {' or '.join(PIECES[name])}; {fix}")
            self.special[name] = found[0]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, hexadecimal."""
        return files.sha256_of([self._content])

    def save(self, path: Path) -> None:
        """Write the file, byte for byte as it was opened. Raises OSError."""
        files.replace(path, self._content, durable=True)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones."""
        return self._pieces.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the tokens of a text, and where the characters of each begin and end in the text.

        Of a character that is spelt as several bytes, the last one has it, the others have no characters.
        """
        found: dict[str, Any] = self._pieces.encode_as_offset_mapping(text)
        return list(found["ids"]), [(int(start), int(end)) for start, end in found["offsets"]]

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens; special ones have none."""
        return self._pieces.decode(tokens)

    def piece(self, token: int) -> str:
        """Return what a single token is called: its text with `▁` for a space, or the name of a special token."""
        return self._pieces.id_to_piece(token)
