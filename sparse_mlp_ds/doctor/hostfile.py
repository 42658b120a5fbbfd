"""Reads the hostfile as DeepSpeed does: one line `HOST slots=RANKS` per host."""

import re
from dataclasses import dataclass
from pathlib import Path

from sparse_mlp_ds.errors import UserError

_LINE = re.compile(
    r"([\w.:@\[\]][\w.:@\[\]-]*)\s+slots=(\d+)(?:\s.*)?", re.ASCII
)  # a name with a leading `-` would be an option of ssh


@dataclass(frozen=True)
class Host:
    """A line of the hostfile."""

    name: str
    """Name by which ssh reaches the host, perhaps with a user: `me@node1`."""
    slots: int | None
    """Number of ranks that the host is to run; None for a host that is in no hostfile."""


def read(path: Path) -> list[Host]:
    """Return the hosts of a hostfile in its order. Raises UserError with one line per problem."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"--hostfile {path}: {error.strerror}; write one, with a line `HOST slots=RANKS` per host"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"--hostfile {path}: is not a text file; write a line `HOST slots=RANKS` per host") from None
    hosts: dict[str, Host] = {}
    problems = []
    if lines and lines[0].startswith("\ufeff"):
        raise UserError(
            f"--hostfile {path}: begins with a byte order mark, which DeepSpeed takes for a part of the first "
            "host's name; save it as UTF-8 without the mark"
        )
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if not match or int(match[2]) < 1:
            problems.append(f"{path}: line {number}: '{line}' names no host; write `HOST slots=RANKS`")
        elif match[1] in hosts:
            problems.append(f"{path}: line {number}: {match[1]} comes twice; give it one line with all its slots")
        else:
            hosts[match[1]] = Host(match[1], int(match[2]))
    if not hosts and not problems:
        problems.append(f"{path}: names no host; write a line `HOST slots=RANKS` per host")
    if problems:
        raise UserError("\n".join(problems))
    return list(hosts.values())
