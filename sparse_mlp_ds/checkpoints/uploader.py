"""Copies a run folder to its mirror beside training, in a process of its own.

So nothing that a network does can stop or slow training: the trainer holds an `Uploader`, which only writes short
lines to the process that it starts, and a thread passes on what the process has to say.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from sparse_mlp_ds.checkpoints.mirror import Mirror, MirrorError
from sparse_mlp_ds.checkpoints.mirror_sync import MirrorSync
from sparse_mlp_ds.errors import RunError, UserError, one_line

LAST_TRIES = 3
"""How often the upload at the end of a run is tried."""
_PAUSE = 5.0  # seconds between two of these tries
_SILENT = 1.0  # seconds of waiting that nobody is told of
_LOOK, _FINISH = b"look\n", b"finish\n"
_SAYS = "say "  # before a line that the process wants to have printed


class Uploader:
    """The trainer's handle on the process.

    Nothing here raises because of the mirror, and nothing but `finish` waits for it.
    """

    def __init__(self, run: Path, url: str, say: Callable[[str], None]):
        """Start the process, which begins with what the mirror lacks already.

        Args:
            run: the run folder.
            url: where it is copied to.
            say: takes lines to print.
        """
        self._run, self._url, self._say = run.absolute(), url, say
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._start()

    def look(self) -> None:
        """Tell the process that there is something new in the run folder; start it again if it has ended."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        if self._process:
            _tell(self._process, _LOOK)

    def finish(self, seconds: float) -> None:
        """Wait until everything is uploaded, for at most so many seconds, and end the process."""
        process, self._process = self._process, None
        later = f"upload the rest with: sparse-mlp-ds checkpoint mirror {self._run}"
        if process is None:
            return
        _tell(process, _FINISH)
        try:
            try:
                code = process.wait(min(_SILENT, seconds))
            except subprocess.TimeoutExpired:
                self._say(f"waiting for the upload to {self._url}, at most {seconds:.0f} s")
                code = process.wait(max(seconds - _SILENT, 0))
            if code:
                self._say(f"WARNING: {self._url} does not hold all of the run; {later}")
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._say(f"WARNING: the upload to {self._url} was not finished after {seconds:.0f} s; {later}")
        if self._listener:
            self._listener.join(_SILENT)

    def close(self) -> None:
        """End the process at once, whatever it is uploading."""
        process, self._process = self._process, None
        if process and process.stdin:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _start(self) -> None:
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        environment = {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith("MASTER_")}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", __name__, str(self._run), self._url]
        try:
            self._process = process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._process = None
            self._say(f"WARNING: {self._url}: nothing is uploaded ({error}); the next checkpoint tries again")
            return
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)  # a process that reads nothing must not hold up training
        self._listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Print what the process wants to have printed; if it ends by an error of its own, its last words."""
        assert process.stdout is not None
        last = ""
        for content in process.stdout:
            line = content.decode(errors="replace").rstrip()
            if line.startswith(_SAYS):
                self._say(line.removeprefix(_SAYS))
            else:
                last = line or last
        code = process.wait()
        if code not in (0, 1) and self._process is process:
            why = f"exit code {code}{f', {last}' if last else ''}"
            self._say(
                f"WARNING: {self._url}: the process that uploads has ended ({why}); the next checkpoint starts it"
            )


def _tell(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Write a line to the process that uploads, unless it has ended, or has been told often enough."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        os.write(process.stdin.fileno(), line)


class _Orders:
    """What the trainer asks for, read by a thread, so that the end of the trainer is noticed in mid-upload."""

    def __init__(self) -> None:
        self.finishes = False
        self._new = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self) -> None:
        """Wait for an order."""
        self._new.wait()
        self._new.clear()

    def _read(self) -> None:
        for line in sys.stdin.buffer:
            self.finishes |= line == _FINISH
            self._new.set()
        if not self.finishes:
            os._exit(1)  # the trainer is gone, and whoever starts it again may use the mirror at once


def main() -> int:
    """Copy a run folder to its mirror whenever standard input says so; return 0 if all is there at the end, else 1."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the trainer, which saves and then says so
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}", description=main.__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("url", help="where it is copied to")
    args = parser.parse_args()
    orders = _Orders()
    sync, failed, tries = MirrorSync(args.run, Mirror(args.url)), False, 0
    while True:
        finishes = orders.finishes
        if problem := _problem(sync):
            later = "it is tried again with the next checkpoint" if not finishes else "it is tried again"
            _have_said(f"WARNING: {args.url}: {problem}; {later}")
        elif failed:
            _have_said(f"{args.url}: holds all checkpoints of the run again")
        failed = bool(problem)
        tries += finishes
        if finishes and (not failed or tries == LAST_TRIES):
            return int(failed)
        if finishes:
            time.sleep(_PAUSE)
        else:
            orders.wait()


def _problem(sync: MirrorSync) -> str:
    """Copy what is new, and return why that failed; an empty text if it did not."""
    try:
        sync()
    except (MirrorError, UserError, RunError, OSError) as error:
        return one_line(error, 400)
    return ""


def _have_said(text: str) -> None:
    """Have the trainer print a line."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{_SAYS}{text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # drivers may have threads that wait for their servers
