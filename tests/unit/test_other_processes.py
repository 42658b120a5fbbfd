"""A process that is looked at may have ended just before."""

import ast
import os
import signal
import subprocess
import sys

import psutil
import pytest

from sparse_mlp_ds.distributed import processes
from tests.helpers.launcher import REPOSITORY

QUESTIONS = {"cmdline", "environ", "exe", "parent", "parents"}
"""What psutil's processes are asked by these names, and nothing else is."""


@pytest.fixture(params=["running", "zombie", "gone"])
def child(request):
    """A process, and whether it still runs."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "its argument"]
    process = subprocess.Popen(command, env=os.environ | {"SAID": "so"}, stdout=subprocess.PIPE)
    process.stdout.readline()
    found = psutil.Process(process.pid)
    if request.param != "running":
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if request.param == "gone":
        process.wait()
    yield found, request.param == "running"
    process.kill()
    process.communicate()


def test_every_question_has_an_answer(child):
    process, running = child
    assert processes.runs(process) == running
    assert processes.command(process)[-1:] == (["its argument"] if running else [])
    assert processes.variables(process).get("SAID") == ("so" if running else None)
    assert isinstance(processes.name(process), str)
    assert running <= (os.getpid() in [one.pid for one in processes.parents(process)])
    processes.send(process, signal.SIGTERM)
    psutil.wait_procs([process], timeout=10)
    assert not processes.runs(process)


def test_there_is_no_process_of_a_free_number():
    child = subprocess.Popen(["true"])
    assert processes.with_number(child.pid).pid == child.pid
    child.wait()
    assert processes.with_number(child.pid) is None


def _answers_for_ended(node):
    if isinstance(node, ast.With):
        heads = [one.context_expr for one in node.items]
    else:
        heads = [one.type for one in node.handlers if one.type]
    text = " ".join(map(ast.unparse, heads))
    return "psutil.Error" in text or "psutil.NoSuchProcess" in text


def _questions(text):
    """Lines that ask a process something where its end would be an error."""
    nodes = list(ast.walk(ast.parse(text)))
    guards = [one for one in nodes if isinstance(one, ast.With | ast.Try) and _answers_for_ended(one)]
    guarded = {inner for guard in guards for line in guard.body for inner in ast.walk(line)}
    calls = [one for one in nodes if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute)]
    return [one.lineno for one in calls if one.func.attr in QUESTIONS and not one.args and one not in guarded]


def test_nothing_asks_a_process_that_may_have_ended():
    folders = ("sparse_mlp_ds", "tests", "benchmarks", "launcher")
    paths = [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(paths) > 500
    found = [f"{path.relative_to(REPOSITORY)}:{line}" for path in paths for line in _questions(path.read_text())]
    assert found == [], "ask through sparse_mlp_ds.distributed.processes"


def test_the_search_finds_what_it_looks_for():
    assert _questions("words = child.cmdline()") == [1]
    guarded = "try:\n    words = child.cmdline()\nexcept psutil.Error:\n    words = child.environ()"
    assert _questions(guarded) == [4]
    assert _questions(guarded.replace("psutil.Error", "OSError")) == [2, 4]
    assert _questions("with suppress(psutil.Error):\n    child.parents()") == []
