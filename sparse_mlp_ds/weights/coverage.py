"""What became of every tensor when weights were loaded."""

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
    """The same on every rank: names are global, wherever the experts live."""

    loaded: tuple[str, ...]
    """The model's tensors that were filled."""
    fresh: tuple[str, ...]
    """The model's tensors that stay as they were drawn."""
    skipped: tuple[str, ...]
    """The file's tensors that went nowhere, under the file's names."""
    resized: tuple[str, ...]
    """The file's token-mixing tensors that were brought to the model's patch grid, under this package's names."""
    exact: bool
    """Whether the model's features are now those of the model that wrote the file, in a pass that drops nothing."""
    reason: str
    """Why, or why not."""

    def table(self, width: int = 110) -> str:
        """Return a table as plain text: counts, and modules instead of tensors."""
        table = Table(title="weights")
        for column in ("what", "tensors", "where"):
            table.add_column(column, justify="right" if column == "tensors" else "left")
        for what in ("loaded", "resized", "fresh", "skipped"):
            names = getattr(self, what)
            if names:
                table.add_row(what, str(len(names)), Text("\n".join(_modules(names))), end_section=True)
        verdict = "as in the file" if self.exact else "not as in the file"
        table.add_row("step 0", "", Text(f"{verdict}: {self.reason}"))
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(table)
        return console.file.getvalue().rstrip()


def _modules(names: Iterable[str]) -> list[str]:
    """Return `blocks 0-9: norm1, mlp_tokens` for blocks with the same modules, and the modules outside blocks."""
    outside, blocks = {}, {}
    for name in names:
        found = _IN_BLOCK.fullmatch(name)
        if found:
            blocks.setdefault(int(found[1]), {})[found[2]] = None
        else:
            outside[re.split(r"[./]", name)[0]] = None
    alike = {}
    for number in sorted(blocks):
        alike.setdefault(", ".join(sorted(blocks[number])), []).append(number)
    lines = [f"blocks {_ranges(numbers)}: {modules}" for modules, numbers in alike.items()]
    return ([", ".join(outside)] if outside else []) + lines


def _ranges(numbers: list[int]) -> str:
    """Return [0, 1, 2, 5] as `0-2, 5`."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
