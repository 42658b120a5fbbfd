"""Training a SentencePiece tokenizer on texts, with settings by which every text can be read back from its tokens."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparse_mlp_ds import files
from sparse_mlp_ds.data.tokenizer import PIECES
from sparse_mlp_ds.errors import UserError, one_line

MOST_CHARACTERS = 100_000_000
"""Characters of the texts that a tokenizer learns from; what comes after them is not looked at."""
_LONGEST = 1 << 30  # bytes of a text


def train(texts: Iterable[str], vocabulary: int, path: Path) -> None:
    """Learn byte-pair encoding from texts, and write the tokenizer. The same texts give the same file.

    Spaces and line ends are kept as they are, and characters that are not in the texts become bytes, so that decoding
    gives back what was encoded, except that U+2581, the character by which SentencePiece writes a space, becomes one.
    The special tokens are control symbols, which no text can contain.

    Args:
        texts: What it learns from.
        vocabulary: Number of tokens, V.
        path: The file to write.

    Raises UserError if the texts do not suffice for so many tokens, or have too many characters for so few.
    """
    from sentencepiece import SentencePieceTrainer

    content = io.BytesIO()
    pad, unk, *control = (PIECES[name][0] for name in ("pad", "unk", "cls", "sep", "mask"))
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_beginning(texts),
            model_writer=content,
            model_type="bpe",
            vocab_size=vocabulary,
            num_threads=1,  # with several, the result may depend on their number
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=pad,
            unk_piece=unk,
            control_symbols=control,
            user_defined_symbols=["\n"],
            max_sentence_length=_LONGEST,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"--vocabulary {vocabulary}: {_reason(one_line(error))}") from None
    files.replace(path, content.getvalue(), durable=True)


def _reason(message: str) -> str:
    """Return what is wrong and the fix, from an error message of SentencePiece's trainer."""
    if "<= " in message and "too high" in message:
        return f"the texts give no more than {message.rpartition('<= ')[2].rstrip('.')} tokens; lower it"
    if "smaller than required_chars" in message:
        needed = message.partition(" vs ")[2].partition(".")[0]
        return f"the characters of the texts alone need {needed} tokens; raise it"
    return f"no tokenizer can be learnt from the texts ({message[-200:]}); change it, or give more text"


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts until their characters suffice."""
    left = MOST_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)
