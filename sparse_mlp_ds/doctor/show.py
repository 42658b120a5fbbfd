"""The hosts as a table, a row each."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparse_mlp_ds import alike
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.facts import Facts

_WIDTH = 160
_FOLDER = {True: "shared", False: "another", None: ""}
_COLUMNS = {
    # heading -> what stands below it; where a host did not answer, nothing does
    "host": None,
    "slots": None,
    "devices": lambda answer: _devices(answer.facts),
    "cores": lambda answer: str(answer.facts.cores),
    "python": lambda answer: answer.facts.python,
    "packages": None,
    "code": lambda answer: answer.facts.code,
    "files": lambda answer: alike.digest(repr(answer.facts.files)) if answer.facts.files else "",
    "/dev/shm": lambda answer: _gib(answer.facts.shared_memory),
    "disk free": lambda answer: _gib(answer.facts.disk),
    "open files": lambda answer: str(answer.facts.open_files or "any"),
    "folder": lambda answer: _FOLDER[answer.facts.marker_seen],
    "calls back": lambda answer: ("no" if answer.facts.call_error else "yes") if answer.facts.caller else "",
    "clock": lambda answer: f"{answer.ahead:+.1f} +-{answer.unsure:.1f} s" if answer.unsure else "",
    "answered": lambda answer: f"{answer.seconds:.1f} s",
}


def show(answers: Sequence[Answer]) -> None:
    """Print the table, and below it the packages of the first host that answered."""
    first = next((answer for answer in answers if answer.facts), None)
    rows = [_row(answer, first) for answer in answers]
    table = Table(title="doctor", box=None, padding=(0, 1, 0, 0))
    used = [name for name in _COLUMNS if any(row.get(name) for row in rows)]
    for name in used:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(row.get(name, "")) for name in used))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(table)
    if first:
        print(f"packages of {first.host.name}: {_packages(first.facts)}")


def _row(answer: Answer, first: Answer | None) -> dict[str, str]:
    row = {"host": answer.host.name, "slots": str(answer.host.slots or "")}
    if not answer.facts:
        return row | {"devices": "no answer", "answered": f"{answer.seconds:.1f} s"}
    mine, others = _packages(answer.facts), _packages(first.facts)
    same = "see below" if answer is first else f"as {first.host.name}"
    row["packages"] = same if mine == others else alike.besides(mine, others)
    return row | {name: cell(answer) for name, cell in _COLUMNS.items() if cell}


def _packages(facts: Facts) -> str:
    return f"{facts.packages}, {facts.extras}"


def _devices(facts: Facts) -> str:
    torch = f", torch in {facts.torch_seconds:.1f} s" if facts.torch_seconds is not None else ""
    return f"{facts.devices} x {facts.device}, {facts.driver}{torch}" if facts.devices else f"{facts.device}{torch}"


def _gib(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 2**30:.0f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
