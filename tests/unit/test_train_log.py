"""RUN/train.log holds what rank 0 prints, once, and never stands in the way."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_mlp_ds.log.train_log import TrainLog

TALK = """
import sys
from pathlib import Path
from sparse_mlp_ds import errors
from sparse_mlp_ds.log import console, output
from sparse_mlp_ds.log.train_log import TrainLog
log = TrainLog(console.say)
output.begin_output(log.take)
errors.COPIES.append(log.take)
console.say("before the folder is known")
log.open(Path(sys.argv[1]))
line = console.ProgressLine("train", 0, 3)
print("to ", end="")
print("stdout")
print("to stderr", file=sys.stderr)
line.step(1)
console.show("\\x1b[1mbold\\x1b[0m caf\u00e9")
line.close()
errors.print_error("error: the end")
print("unfinished", end="")
log.close()
output.end_output()
"""
LINES = ["before the folder is known", "to stdout", "to stderr", "bold caf\u00e9", "error: the end", "unfinished"]


def _talk(log: Path, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", TALK, str(log)], timeout=100, check=True, **how)


def _lines(log: Path) -> list[str]:
    """Return the file's lines without times."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in log.read_text().splitlines()]


def test_every_start_is_appended_behind_a_line_with_its_date(tmp_path):
    log = tmp_path / "train.log"
    for _ in range(2):
        _talk(log, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = _lines(log)
    assert lines[1:7] == lines[8:] == LINES
    assert all(re.fullmatch(r"--- started \d{4}-\d\d-\d\d .*, process \d+ on .* ---", lines[at]) for at in (0, 7))


def test_on_a_terminal_the_text_is_copied_and_the_bar_is_not(tmp_path):
    reads, writes = pty.openpty()
    _talk(tmp_path / "train.log", stdout=writes, stderr=writes, env=os.environ | {"TERM": "xterm"})
    shown = os.read(reads, 1 << 16).decode()
    assert "\x1b[" in shown and "0/3" in shown, "the bar is on the terminal"
    assert _lines(tmp_path / "train.log")[1:] == LINES


@pytest.mark.parametrize("both", [True, False])
def test_what_goes_to_the_file_anyway_is_not_copied_into_it(tmp_path, both):
    """As in a sweep, whose runs have this file as their output."""
    path = tmp_path / "train.log"
    with path.open("ab") as log:
        _talk(path, stdout=log, stderr=subprocess.STDOUT if both else subprocess.PIPE)
    assert sorted(re.sub(r"\x1b\[\d+m", "", line) for line in _lines(path)) == sorted(LINES)


@pytest.mark.parametrize("broken", ["/dev/full", "nowhere/train.log"])
def test_a_file_that_cannot_be_written_costs_warnings(tmp_path, broken):
    if broken == "/dev/full" and not os.path.exists(broken):
        pytest.skip("no /dev/full here")
    done = _talk(tmp_path / broken, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout.count("training goes on, and records wait in memory") == 1
    assert "records were not written" in done.stdout and "to stdout" in done.stdout and "error: the end" in done.stderr


def test_lines_that_waited_for_room_are_written_in_order(tmp_path):
    said: list[str] = []
    log = TrainLog(lambda text: (said.append(text), log.take(9, f"{text}\n")))
    folder = tmp_path / "later"
    log.open(folder / "train.log")
    log.take(9, "one\ntwo\n")
    folder.mkdir()
    log.take(9, "three\n")
    log.close()
    lines = _lines(folder / "train.log")
    assert [line for line in lines if line in ("one", "two", "three")] == ["one", "two", "three"]
    assert len(said) == 2 and said[0] in lines and said[1] in lines


def test_a_forked_process_copies_nothing(tmp_path):
    log = TrainLog(print)
    log.open(tmp_path / "train.log")
    if (child := os.fork()) == 0:
        log.take(9, "of the child\n")
        os._exit(0)
    os.waitpid(child, 0)
    log.take(9, "of the parent\n")
    log.close()
    assert _lines(tmp_path / "train.log")[1:] == ["of the parent"]
