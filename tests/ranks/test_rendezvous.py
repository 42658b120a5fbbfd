"""Ranks that end before they have joined: the others hear of it, or name them, and end too."""

import os
import time
from pathlib import Path

import pytest

from sparse_mlp_ds.distributed import rendezvous
from sparse_mlp_ds.distributed.network import free_port
from sparse_mlp_ds.errors import ReportedError, RunError, UserError
from tests.helpers import harness

pytestmark = pytest.mark.timeout(120)
SHORT = 6.0


def _meet(rank: int, port: int, folder: Path, fate: str, late: float) -> None:
    """Write down how it went: a number of seconds and what was raised."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    time.sleep(late)
    started = time.monotonic()
    try:
        if fate == "declines":
            rendezvous.decline(rank, 3)
        elif fate == "comes":
            store = rendezvous.join(rank, 3, SHORT)
            assert store.get(f"here/{rank}")
            time.sleep(1)  # a run would go on with it
        said = "fine"
    except (UserError, RunError) as error:
        said = f"{type(error).__name__}: {error}"
    (folder / str(rank)).write_text(f"{time.monotonic() - started:.1f} {said}")


def _all(folder: Path, *fates: str, late: int | None = None) -> tuple[list[float], list[str]]:
    port = free_port()
    ranks = [
        harness._context.Process(target=_meet, args=(rank, port, folder, fate, 1.0 * (rank == late)), daemon=True)
        for rank, fate in enumerate(fates)
        if fate != "is dead"
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    outcomes = [(folder / str(n)).read_text() if f != "is dead" else "0 -" for n, f in enumerate(fates)]
    seconds, said = zip(*(outcome.split(" ", 1) for outcome in outcomes), strict=True)
    return [float(s) for s in seconds], list(said)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_all_come(tmp_path, late):
    assert _all(tmp_path, *["comes"] * 3, late=late)[1] == ["fine"] * 3


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("who", [0, 2])
def test_one_declines_and_the_others_hear_it_at_once(tmp_path, who, late):
    fates = ["declines" if rank == who else "comes" for rank in range(3)]
    seconds, said = _all(tmp_path, *fates, late=late)
    assert said.pop(who) == "fine" and max(seconds) < SHORT - 1
    assert all(line.startswith(f"{ReportedError.__name__}: rank {who} on ") for line in said), said


def test_all_decline(tmp_path):
    seconds, said = _all(tmp_path, *["declines"] * 3)
    assert said == ["fine"] * 3 and max(seconds) < SHORT - 1


def test_one_that_says_nothing_is_named(tmp_path):
    _, said = _all(tmp_path, "comes", "is dead", "comes")
    assert said[0].startswith("UserError: rank 1 did not join within 6 s, 2 of 3 came (from ")
    assert "\n" not in said[0] and said[2].startswith("ReportedError")


def test_without_rank_0_nobody_waits_for_ever(tmp_path):
    _, said = _all(tmp_path, "is dead", "comes", "comes")
    assert all(line.startswith("RunError: rank 0 could not be reached at 127.0.0.1 port ") for line in said[1:])
