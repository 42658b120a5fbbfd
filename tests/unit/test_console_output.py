"""A standard output that cannot be written must neither end nor hold up what prints to it, nor change its exit code."""

import os
import pty
import re
import subprocess
import sys
import termios
import time

import pytest

TALK = """
import sys
from sparse_mlp_ds.log import console, output
output.END_SECONDS = float(sys.argv[1]) if sys.argv[1:] else 10
output.begin_output()
for number in range(2000):
    console.say(f"line {number} " + "." * 100)
summary = {"recipe": "r", "world_size": 1, "ep_size": 1, "zero_stage": 0,
           "stages": [{"name": "s", "steps": 1, "images": 1, "seconds": 1.0, "metrics": {"top1": 0.5}}]}
console.final_table(summary, "runs/r")
output.end_output()
print("done", file=sys.stderr)
"""


def talk(stdout, **how):
    return subprocess.run([sys.executable, "-c", TALK], stdout=stdout, stderr=subprocess.PIPE, timeout=100, **how)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_under_stdout():
    with open("/dev/full", "w") as full:
        done = talk(full)
    assert (done.returncode, done.stderr) == (0, b"done\n")


def test_a_reader_that_has_gone():
    reads, writes = os.pipe()
    os.close(reads)
    done = talk(writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"done\n")


def test_a_closed_stdout():
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, TALK], stderr=subprocess.PIPE, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, b"done\n")


def test_an_open_one_gets_everything():
    done = talk(subprocess.PIPE)
    assert done.returncode == 0 and done.stdout.count(b"line ") == 2000 and b"50.00" in done.stdout


def test_a_character_that_the_output_does_not_know_is_written_as_its_number():
    code = "from sparse_mlp_ds.log import console, output; output.begin_output(); console.say('caf\u00e9'); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        timeout=100,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and done.stdout.endswith(b"caf\\xe9\non\n")


class Pipe:
    """A pipe whose reader sleeps."""

    def __init__(self):
        self.reads, self.writes = os.pipe()

    def sleep(self):
        return

    def wake(self):
        return

    def close(self):
        os.close(self.reads)


class Terminal(Pipe):
    """A terminal that is not read, as that of a connection that froze."""

    def __init__(self):
        self.reads, self.writes = pty.openpty()


class StoppedTerminal(Terminal):
    """A terminal that is read, and on which Ctrl-S was typed."""

    def sleep(self):
        termios.tcflow(self.writes, termios.TCOOFF)

    def wake(self):
        termios.tcflow(self.writes, termios.TCOON)


class Socket(Pipe):
    """The socket that an ssh daemon gives to a command, whose peer sleeps."""

    def __init__(self):
        import socket

        self.reads, self.writes = (one.detach() for one in socket.socketpair())


SLEEPERS = (Pipe, Terminal, StoppedTerminal, Socket)
TALK_ON = """
import os, sys
from sparse_mlp_ds.log import console, output
output.WAITING_BYTES = 20_000
output.begin_output()
line = console.ProgressLine("train", 0, 10**6)
for number in range(4000):
    line.step(number)
    console.say(f"line {number} " + "." * 40)
os.write(2, b"printed\\n")  # the progress bar of a terminal takes what goes to sys.stderr
sys.stdin.readline()
console.say("the last line")
line.close()
output.end_output()
print("done", file=sys.stderr)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", SLEEPERS)
def test_a_reader_that_sleeps_holds_nothing_up_and_is_told_what_is_missing(kind):
    output = kind()
    keeps = os.dup(output.writes)  # a terminal is stopped through it
    output.sleep()
    process = subprocess.Popen(
        [sys.executable, "-c", TALK_ON],
        stdin=subprocess.PIPE, stdout=output.writes, stderr=subprocess.PIPE, env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    try:
        assert process.stderr.readline() == b"printed\n"  # though nobody reads
        output.wake()
        process.stdin.write(b"\n")
        process.stdin.flush()
        os.close(keeps)
        os.close(output.writes)
        read = b""
        while b"the last line" not in read:
            read += os.read(output.reads, 1 << 16)
        assert process.wait(60) == 0 and process.stderr.read() == b"done\n"
    finally:
        process.kill()
        process.wait()
        output.close()
    numbers = [int(number) for number in re.findall(r" line (\d+) \.{40}\r?\n", read.decode())]
    assert numbers == sorted(numbers) and numbers[-1] == 3999
    assert numbers[0] == 0 or kind is StoppedTerminal, "what the terminal or pipe itself can hold is there"
    assert b" lines are missing here: this output could not be written]" in read


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", SLEEPERS)
def test_the_end_waits_for_a_reader_that_sleeps_but_not_for_ever(kind):
    output, started = kind(), time.monotonic()
    output.sleep()
    process = subprocess.Popen([sys.executable, "-c", TALK, "1"], stdout=output.writes, stderr=subprocess.PIPE)
    try:
        assert process.wait(100) == 0 and process.stderr.read() == b"done\n"
    finally:
        process.kill()
        process.wait()
        output.wake()
        os.close(output.writes)
        output.close()
    print(f"took {time.monotonic() - started:.1f} s")
