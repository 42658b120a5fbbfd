"""Who failed first, told from what is heard when a run falls apart."""

from dataclasses import replace

import pytest

from sparse_mlp_ds.watchdog.diagnosis import Event, Status, behind, first, is_waiting, report

RANKS = {rank: Status(rank, f"node{rank + 1}", "pretrain", 40, "forward", age=3.0) for rank in range(4)}
WAITING = 'Current thread (most recent call first):\n  File "x/torch/distributed/c10d.py", line 1 in all_reduce\n'
WAITING_IN = ("x/torch/distributed/",)
READING = 'Current thread (most recent call first):\n  File "data/loader.py", line 1 in read\n'

CASES = {
    "a death before its consequences": ([Event("died", 2, 1.0), Event("failed", 0, 2.0)], 2),
    "a death heard of after its consequences": (
        [Event("failed", 0, 1.0), Event("failed", 1, 1.1), Event("died", 2, 2.0)],
        2,
    ),
    "the first of two exceptions": ([Event("failed", 3, 1.5), Event("failed", 1, 1.0)], 1),
    "a silent host that others fail for": ([Event("failed", 0, 1.0), Event("silent", 3, 9.0, "12")], 3),
    "a launcher's end before exceptions": ([Event("failed", 0, 1.0), Event("launcher", 2, 3.0, "its launcher")], 2),
    "a death before a silence": ([Event("silent", 0, 1.0, "12"), Event("died", 1, 5.0)], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_one_event_that_the_others_followed_from(case):
    events, rank = CASES[case]
    assert first(events).rank == first(events[::-1]).rank == rank


@pytest.mark.parametrize(
    "change, why",
    [
        ({"stopped": True, "step": 41}, "a stopped one, however far"),
        ({"step": 39}, "the least far"),
        ({"phase": "data"}, "in the same step, the earliest phase"),
        ({"waits": False}, "in the same phase, the one that does not wait"),
    ],
)
def test_whom_the_others_wait_for(change, why):
    ranks = [replace(status, waits=True) for status in RANKS.values()]
    ranks[2] = replace(ranks[2], **change)
    assert behind(ranks).rank == 2, why


def test_what_may_last_is_not_stuck():
    late = replace(RANKS[0], age=100.0)
    assert late.is_stuck(60) and not late.is_stuck(200)
    for phase in ("start", "save", "evaluate"):
        assert not replace(late, phase=phase).is_stuck(60)
        assert replace(late, phase=phase, stopped=True).is_stuck(60)


def test_only_the_thread_that_trains_shows_who_waits():
    other = 'Thread 1 (most recent call first):\n  File "x/torch/distributed/store.py", line 1 in wait\n'
    assert is_waiting(READING + WAITING, WAITING_IN)
    assert not is_waiting(other + READING, WAITING_IN)
    assert not is_waiting("", WAITING_IN)


REPORTS = {
    "died": (Event("died", 1, 1.0), "its process is gone, without an error message"),
    "silent": (Event("silent", 1, 1.0, "12"), "no message from it for 12 s"),
    "failed": (Event("failed", 1, 1.0, "Traceback:\n  ...\nValueError: wrong\n"), "ValueError: wrong"),
    "launcher": (Event("launcher", 1, 1.0, "its launcher is gone"), "its launcher is gone"),
    "stuck": (Event("stuck", 1, 1.0), "no progress for 3 s: it waits for no rank"),
}


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_names_rank_host_step_stage_phase_and_those_that_followed(kind):
    event, said = REPORTS[kind]
    text = report(event, RANKS, [event, Event("failed", 3, 2.0)]).splitlines()
    assert text[0].startswith(f"FAILED FIRST: rank 1 on node2 at step 40 of stage pretrain, in forward: {said}")
    assert text[-2:] == ["after it: rank 3 (failed)", "every process of the run ends now"]
    assert ("ValueError: wrong" in text[1:]) == (kind == "failed")
