"""The lab's slow wire: what one host sends another arrives whole, not before its time; afterwards all is as before."""

import subprocess
import sys

import pytest

from tests.helpers.hosts import FourHosts, why_not

_reason = why_not()
pytestmark = [pytest.mark.timeout(120), pytest.mark.skipif(bool(_reason), reason=_reason)]
SIZE = 20 << 20

ECHO = """
import socket
server = socket.create_server(("10.77.0.2", 9000))
print("listening", flush=True)
other, _ = server.accept()
while data := other.recv(1 << 16):
    other.sendall(data)
"""
ASK = f"""
import socket, threading, time
other = socket.create_connection(("10.77.0.2", 9000))
started = time.monotonic()
other.sendall(b"x")
other.recv(1)
print(time.monotonic() - started)
sent, came = bytes(range(256)) * ({SIZE} // 256), bytearray()
threading.Thread(target=other.sendall, args=(sent,)).start()
while len(came) < len(sent):
    came += other.recv(1 << 16)
print(bytes(came) == sent)
"""


def _round_trip(lab: FourHosts) -> float:
    """Send a byte and then many from node1 to node2 and back; return the seconds of the first."""
    with subprocess.Popen([*lab.enter("node2"), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True) as echo:
        assert echo.stdout.readline() == "listening\n"
        asked = subprocess.run(
            [*lab.enter("node1"), sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60
        )
    seconds, whole = asked.stdout.split()
    assert whole == "True", asked.stderr
    return float(seconds)


def test_a_delay_is_one_way_and_ends(tmp_path):
    with FourHosts(tmp_path / "lab", 2) as lab:
        lab.delay(50)
        assert _round_trip(lab) >= 0.1
        lab.delay(20)
        assert _round_trip(lab) >= 0.04
        lab.delay(None)
        _round_trip(lab)
        code, output = lab.run("ssh", "node2", "hostname", cwd=tmp_path)
    assert (code, output) == (0, "node2\n")
