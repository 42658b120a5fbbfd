"""What a source holds besides usable samples: counted by reason, with an example of each, so that it can be told."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

HIDDEN = "hidden"
"""Reason for files and folders whose names begin with a dot, such as macOS's `._` files and .ipynb_checkpoints."""
_LINES = 10
_NAME = 300  # characters of an example that are shown


class PassedOver:
    """Counts what is passed over by reason, and keeps the first example of each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Reason -> how many files, folders or entries were passed over for it."""
        self._examples: dict[str, str] = {}

    def add(self, reason: str, example: str | Path) -> None:
        """Count one file, folder or entry. example: Where it is; names that cannot be printed are written in ASCII."""
        self.counts[reason] += 1
        if reason not in self._examples:
            text = str(example)[:_NAME]
            self._examples[reason] = text if text.isprintable() else ascii(text)[1:-1]

    def update(self, parts: Iterable["PassedOver"]) -> "PassedOver":
        """Add what others have counted, and return this one."""
        for part in parts:
            self.counts.update(part.counts)
            self._examples = part._examples | self._examples
        return self

    def lines(self) -> list[str]:
        """Return one line per reason, the most frequent first; the rarest share a line if there are many reasons."""
        told, rest = self.counts.most_common(_LINES), self.counts.most_common()[_LINES:]
        lines = [f"passed over {count}: {self._explained(reason, count)}" for reason, count in told]
        if rest:
            lines.append(f"passed over {sum(count for _, count in rest)} for {len(rest)} rarer reasons")
        return lines

    def clause(self) -> str:
        """Return the same as the end of an error message, `; passed over 2: ...`, or an empty text for nothing."""
        return "".join(f"; {line}" for line in self.lines())

    def _explained(self, reason: str, count: int) -> str:
        return f"{reason} ({'such as ' if count > 1 else ''}{self._examples[reason]})"


def is_hidden(name: str) -> bool:
    """Return whether a file's name, or the last part of a path, begins with a dot. webdataset skips such members."""
    return name.rpartition("/")[2].startswith(".")
