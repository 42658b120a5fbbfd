"""Prints the hosts as a table, one row each."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparse_mlp_ds.distributed import consistency
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.facts import HostFacts

_WIDTH = 160
_FOLDER = {True: "shared", False: "not shared", None: ""}
_Cell = Callable[[Answer, HostFacts], str]
_COLUMNS: dict[str, _Cell | None] = {
    # heading -> cell of a host that answered; None: see `_row`
    "host": None,
    "slots": None,
    "devices": lambda answer, facts: _devices(facts),
    "cores": lambda answer, facts: str(facts.cores),
    "python": lambda answer, facts: facts.python,
    "packages": None,
    "code": lambda answer, facts: facts.code,
    "files": lambda answer, facts: consistency.digest(repr(facts.files)) if facts.files else "",
    "/dev/shm": lambda answer, facts: _gib(facts.shared_memory),
    "disk free": lambda answer, facts: _gib(facts.disk),
    "open files": lambda answer, facts: str(facts.open_files or "any"),
    "folder": lambda answer, facts: _FOLDER[facts.marker_seen],
    "calls back": lambda answer, facts: ("no" if facts.call_error else "yes") if facts.caller else "",
    "clock": lambda answer, facts: f"{answer.ahead:+.1f} +-{answer.unsure:.1f} s" if answer.unsure else "",
    "answered": lambda answer, facts: f"{answer.seconds:.1f} s",
}


def show(answers: Sequence[Answer]) -> None:
    """Print the table of all hosts, and below it the packages of the first host that answered."""
    answered = [(answer.host.name, answer.facts) for answer in answers if answer.facts]
    first = answered[0] if answered else None
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
        print(f"packages of {first[0]}: {_packages(first[1])}")


def _row(answer: Answer, first: tuple[str, HostFacts] | None) -> dict[str, str]:
    """Return a host's cells by heading. first: name and facts of the first host that answered."""
    row = {"host": answer.host.name, "slots": str(answer.host.slots or "")}
    if not answer.facts or not first:
        return row | {"devices": "no answer", "answered": f"{answer.seconds:.1f} s"}
    own, reference = _packages(answer.facts), _packages(first[1])
    if answer.facts is first[1]:
        row["packages"] = "see below"
    elif own == reference:
        row["packages"] = f"as {first[0]}"
    else:
        row["packages"] = consistency.items_only_in(own, reference)
    return row | {name: cell(answer, answer.facts) for name, cell in _COLUMNS.items() if cell}


def _packages(facts: HostFacts) -> str:
    return f"{facts.packages}, {facts.extras}"


def _devices(facts: HostFacts) -> str:
    torch = f", torch in {facts.torch_seconds:.1f} s" if facts.torch_seconds is not None else ""
    return f"{facts.devices} x {facts.device}, {facts.driver}{torch}" if facts.devices else f"{facts.device}{torch}"


def _gib(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 2**30:.0f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
