"""The hostfile: a line `HOST slots=RANKS` per host, as DeepSpeed reads it."""

import re
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds.errors import UserError

_LINE = re.compile(r"([\w.:@\[\]][\w.:@\[\]-]*)\s+slots=(\d+)(?:\s.*)?", re.ASCII)  # no name is taken for an option


@dataclass(frozen=True)
class Host:
    """A line of the hostfile."""

    name: str
    slots: int | None
    """Ranks that it is to run; None for a host that no file names."""


def read(path: Path) -> list[Host]:
    """Return the hosts in the file's order. Raises UserError with one line per problem."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"--hostfile {path}: {error.strerror}; write one, a line `HOST slots=RANKS` per host") from None
    except UnicodeDecodeError:
        raise UserError(f"--hostfile {path}: is no text; write a line `HOST slots=RANKS` per host") from None
    hosts: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or int(match[2]) < 1:
            problems.append(f"{path}: line {number}: '{line}' is no host; write `HOST slots=RANKS`")
        elif match[1] in hosts:
            problems.append(f"{path}: line {number}: {match[1]} comes twice; give it one line with all its slots")
        else:
            hosts[match[1]] = Host(match[1], int(match[2]))
    if not hosts and not problems:
        problems.append(f"{path}: names no host; write a line `HOST slots=RANKS` per host")
    if problems:
        raise UserError("\n".join(problems))
    return list(hosts.values())
