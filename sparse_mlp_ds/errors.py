"""The one exception a user is meant to read, and the spelling help that goes with it."""

from collections.abc import Iterable
from difflib import get_close_matches

STOPPED = 85
"""Exit code: stopped on request, and the same command goes on."""


class UserError(Exception):
    """Bad configuration, usage or input.

    Each line of the message stands alone: it names the file, the key or sample, and the fix.
    Commands print it without a traceback and exit with code 2.
    """


class RunError(Exception):
    """Something outside the program ended the run. Commands print it without a traceback and exit with code 1."""


class ReportedError(UserError):
    """A UserError of rank 0, as the other ranks see it: they end too, but leave the printing to rank 0."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest of `valid`, else the list of what is valid."""
    valid = sorted(valid)
    nearest = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{nearest[0]}'?" if nearest else f"valid: {', '.join(valid)}"
