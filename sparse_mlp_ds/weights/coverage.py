"""What happened to every tensor when weights were loaded into a model."""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

_IN_BLOCK = re.compile(r"(?:blocks\.|MixerBlock_)([0-9]+)[./]((?:moe_[sc]\.)?[A-Za-z0-9_]+).*")


@dataclass(frozen=True)
class Coverage:
    """What was loaded and what was not, by the names of tensors.

    It is the same on every rank: experts are named by their number in the whole model, wherever they live.
    """

    loaded: tuple[str, ...]
    """The model's tensors that were filled."""
    fresh: tuple[str, ...]
    """The model's tensors that keep their initial values."""
    skipped: tuple[str, ...]
    """The file's tensors that were not used, under the file's names."""
    resized: tuple[str, ...]
    """The file's token-mixing tensors that were resized to the model's patch grid, under this package's names."""
    exact: bool
    """Whether the model now computes the same features as the model that wrote the file, where no item is dropped."""
    reason: str
    """Why `exact` is true, or why it is not."""

    def table(self, width: int = 110) -> str:
        """Return a table as plain text of `width` columns, which names modules instead of single tensors."""
        table = Table(title="weights")
        for column in ("what", "tensors", "where"):
            table.add_column(column, justify="right" if column == "tensors" else "left")
        for what in ("loaded", "resized", "fresh", "skipped"):
            names = getattr(self, what)
            if names:
                table.add_row(what, str(len(names)), Text("\n".join(_modules(names))), end_section=True)
        verdict = "as in the file" if self.exact else "not as in the file"
        table.add_row("step 0", "", Text(f"{verdict}: {self.reason}"))
        text = io.StringIO()
        Console(file=text, width=width, color_system=None).print(table)
        return text.getvalue().rstrip()


def _modules(names: Iterable[str]) -> list[str]:
    """Return a line of the modules outside blocks, then `blocks 0-9: norm1, mlp_tokens` for blocks with equal modules.

    names: of tensors, this package's or Google's.
    """
    outside: dict[str, None] = {}
    blocks: dict[int, set[str]] = {}
    for name in names:
        if match := _IN_BLOCK.fullmatch(name):
            blocks.setdefault(int(match[1]), set()).add(match[2])
        else:
            outside[re.split(r"[./]", name)[0]] = None
    numbers: dict[str, list[int]] = {}
    for number in sorted(blocks):
        numbers.setdefault(", ".join(sorted(blocks[number])), []).append(number)
    lines = [f"blocks {_ranges(same)}: {modules}" for modules, same in numbers.items()]
    return ([", ".join(outside)] if outside else []) + lines


def _ranges(numbers: list[int]) -> str:
    """Return [0, 1, 2, 5] as `0-2, 5`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
