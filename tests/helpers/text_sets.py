"""Small text data sets, made as the command makes them."""

from pathlib import Path

from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.shards import text
from sparse_mlp_ds.shards.row_writer import Layout
from sparse_mlp_ds.shards.texts import RawText

LENGTH, VOCABULARY = 16, 340
_WORDS = ["the", "state", "of", "union", "is", "strong", "and", "people", "know", "its", "laws", "war", "peace", "land"]


def sentence(number: int, words: int = 12) -> str:
    """Return a text that is different for every number."""
    return " ".join(_WORDS[(number * 7 + k * (number % 5 + 1)) % len(_WORDS)] for k in range(words)) + f" {number}."


def texts(count: int, classes: int = 0, words: int = 12, first: int = 0) -> list[RawText]:
    """Return `count` texts; with classes, each has one."""
    numbers = range(first, first + count)
    return [RawText(sentence(n, words), label=f"class {n % classes}" if classes else "") for n in numbers]


def make(
    folder: Path,
    train: list[RawText],
    val: list[RawText] | None = None,
    packing: str = "texts",
    length: int = LENGTH,
    per_shard: int = 10,
    **options,
) -> list[Index]:
    """Write folder/train and folder/val, or the folder alone if there is no `val`; return their indexes."""
    parts = {"": train} if val is None else {"train": train, "val": val}
    splits = [text.TextSplit(name, lambda given=given: iter(given)) for name, given in parts.items()]
    how = text.Options(packing, length, **({"vocabulary": VOCABULARY} | options), layout=Layout(per_shard))
    made = text.make(folder, splits, how, text.plan_of([repr(parts)], how), lambda what, done, total: None)
    return [one.index for one in made]
