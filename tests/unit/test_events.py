"""Events of a run: a line for each, and a command of the user's, which can neither fail nor hold up the run."""

import json
import os
import sys
import time

import pytest

from sparse_mlp_ds.config.log import Log
from sparse_mlp_ds.watchdog import events
from sparse_mlp_ds.watchdog.events import Events

TELL = [
    sys.executable,
    "-c",
    "import os, sys; open('told', 'a').write('|'.join([os.environ['SPARSE_MLP_DS_EVENT'], sys.argv[1], "
    "os.environ['SPARSE_MLP_DS_MESSAGE'], os.environ['SPARSE_MLP_DS_RUN'], sys.stdin.read()]))",
    "$(touch executed) ; *",
]
"""Writes down what it is told; its argument would do something if a shell saw it."""


def test_an_event_is_a_line_and_the_command_is_told_without_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Events(tmp_path, TELL)
    run.add("loss_spike", "of step 3", samples=["a/1"])
    run.wait()
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record.pop("time") == pytest.approx(time.time(), abs=60)
    assert record == {"event": "loss_spike", "message": "of step 3", "samples": ["a/1"]}
    text = f"{tmp_path}: loss_spike: of step 3\n"
    assert (tmp_path / "told").read_text() == f"loss_spike|$(touch executed) ; *|of step 3|{tmp_path}|{text}"
    assert not (tmp_path / "executed").exists()


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(events, "COMMAND_SECONDS", 1.0)
    run = Events(tmp_path, ["sh", "-c", "sleep 300 & echo $! > child; wait"])
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    run.add("ended", "")
    assert time.monotonic() - started < 1, "nobody waits for it"
    run.wait()
    assert time.monotonic() - started < 30
    assert "WARNING: log.on_event: sh took more than 1 s and was killed" in capfd.readouterr().err
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and "Z" not in open(f"/proc/{child}/stat").read().split()[2]:  # noqa: SIM115
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "said"),
    [(["/nowhere/tell"], "/nowhere/tell: No such file"), (["sh", "-c", "exit 3"], "sh ended with exit code 3"),
     (["a\0b"], "log.on_event")],
)  # fmt: skip
def test_a_command_that_fails_is_only_warned_about(tmp_path, capfd, command, said):
    run = Events(tmp_path, command)
    run.add("failed", "why")
    run.wait()
    assert said in capfd.readouterr().err and "failed" in (tmp_path / "events.jsonl").read_text()


def test_a_folder_that_is_gone_costs_the_line_and_not_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Events(tmp_path / "gone", TELL)
    run.add("failed", "why")
    run.wait()
    assert (tmp_path / "told").read_text().startswith("failed|")


def test_what_a_command_prints_is_kept(tmp_path):
    run = Events(tmp_path, ["sh", "-c", "cat; echo sent; echo lost >&2"])
    run.add("stopped", "for now")
    run.wait()
    assert (tmp_path / "on_event.log").read_text() == f"{tmp_path}: stopped: for now\nsent\nlost\n"


def test_a_command_line_is_refused():
    with pytest.raises(ValueError, match="expected a list of program and arguments"):
        Log(on_event="mail me")
