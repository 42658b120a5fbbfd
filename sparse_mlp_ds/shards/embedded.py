"""The data sets that come with the package or its dependencies, written where a recipe expects them."""

from collections.abc import Callable
from pathlib import Path

from sparse_mlp_ds.data.config import Data
from sparse_mlp_ds.shards import digits, speeches

MAKERS: dict[str, Callable[[Path], None]] = {"digits": digits.make, "speeches": speeches.make}
"""What writes folder/train and folder/val, by the name of the data set; it does nothing if they are there."""


def make_for(data: Data) -> None:
    """Write the data set that `data.embedded` names, unless the recipe was pointed at different shards.

    Raises UserError if its place holds something else.
    """
    train = Path(data.train[0].path)
    val = Path(data.val[0].path) if data.val else train.parent / "val"
    if data.embedded and (train.name, val) == ("train", train.parent / "val"):
        MAKERS[data.embedded](train.parent)
