"""wandb in a process of its own: it follows RUN/metrics.jsonl, so nothing that wandb does can stop or slow training.

The trainer holds a `WandbFollower`; the process it starts runs `main`. What wandb did not take by the end of a run can
be sent later, with the command line that `close` prints.
"""

import argparse
import fcntl
import json
import os
import secrets
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import yaml

from sparse_mlp_ds import files

if TYPE_CHECKING:  # the process itself must not wait for pydantic and torch
    from sparse_mlp_ds.recipe import Wandb

say = partial(print, flush=True)
POLL_SECONDS = 0.5
ORPHAN_SECONDS = 60
"""What is left to a process whose trainer died, so that a silent server cannot keep it for ever."""
DEFAULTS = {
    "INIT_TIMEOUT": "30",
    "QUIET": "true",
    "CONSOLE": "off",
    "ERROR_REPORTING": "false",  # it holds up the exit by 20 s when the server is silent
    "X_DISABLE_STATS": "true",  # the figures would be this process's
    "X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # 15 s of an offline run would be lost with a killed node
}
"""WANDB_* where the user has not set it; in the environment, a version of wandb ignores the names it does not know."""


class WandbFollower:
    """The trainer's handle on the process. Nothing here raises because of wandb or waits for it, `close` excepted."""

    def __init__(self, run_folder: Path, settings: "Wandb", run_name: str):
        """Start to follow run_folder/metrics.jsonl, which need not exist. settings: mode is not `disabled`."""
        self._log = run_folder.absolute() / "wandb.log"
        options = {"project": settings.project, "mode": settings.mode, "name": run_name, "entity": settings.entity}
        self._command = [sys.executable, "-m", "sparse_mlp_ds.log.wandb_follow", str(run_folder.absolute())]
        self._command += [f"--{key}={value}" for key, value in options.items() if value is not None]
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        environment = {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith("MASTER_")}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process: subprocess.Popen | None = None
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            say(f"wandb: cannot follow the run ({error}); {self._later()}")

    def close(self, patience_seconds: float = 15) -> str | None:
        """Let the process send what is left, then end it; metrics.jsonl must be complete.

        Returns the line that it prints if something could not be sent, else None. Later calls do nothing.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(OSError):  # it has ended already
            process.stdin.write(b"\n")  # loader workers forked from this process keep the pipe open: no EOF then
        process.stdin.close()
        try:
            code = process.wait(patience_seconds)
            if code == 0:
                return None
            line = f"wandb: failed with exit code {code}, see {self._log}; {self._later()}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # wandb's own process, in another session, ends when this one does
            process.wait()
            line = f"wandb: not finished after {patience_seconds:g} s and stopped, see {self._log}; {self._later()}"
        say(line)
        return line

    def _later(self) -> str:
        return f"send the rest later with: {shlex.join(self._command)} < /dev/null"


def main() -> None:
    """Forward records until the trainer ends, then finish; the trainer bounds the time that may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; this process ends with it
    parser = argparse.ArgumentParser(prog="python -m sparse_mlp_ds.log.wandb_follow", description=main.__doc__)
    parser.add_argument("run_folder", type=Path)
    for name in ("--project", "--mode", "--name", "--entity"):
        parser.add_argument(name, required=name != "--entity")
    arguments = parser.parse_args()
    ended = Event()
    Thread(target=_watch, args=(ended,), daemon=True).start()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(f"WANDB_{name}", value)
    try:
        from wandb import init, teardown  # by name: a folder called wandb also imports
    except ImportError as error:
        say(f"wandb is not installed ({error}); nothing is sent: pip install wandb, or set log.wandb.mode: disabled")
        return

    folder: Path = arguments.run_folder
    lock = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # not every network file system has locks
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: the process of a killed try may still be finishing
    options = {"project": arguments.project, "entity": arguments.entity, "name": arguments.name, "dir": str(folder)}
    config = folder / "config.yaml"
    options |= {"config": yaml.safe_load(config.read_text()) if config.exists() else None}
    options |= {"id": _run_id(folder), "resume": "allow"}
    online = arguments.mode == "online"
    try:
        run = init(mode=arguments.mode, **options)
    except Exception as error:
        if not online:
            raise
        online = False
        teardown()  # the failed run keeps its id until then
        run = init(mode="offline", **options)
        reason = str(error).partition("\n")[0]
        say(f"no answer from wandb ({reason}); kept offline, send it with: wandb sync {folder}/wandb/offline-run-*")

    saved = folder / "wandb_step"
    last = max(int(saved.read_text()) if saved.exists() else -1, run.starting_step - 1)
    sent = 0
    for record in _records(folder / "metrics.jsonl", ended):
        if record["step"] > last:
            last, sent = record["step"], sent + 1
            run.log(_figures(record), step=last, commit=True)
            if not online:
                files.replace(saved, str(last))
    run.finish()
    if online:  # only now has the server everything; after a kill it tells what it has (starting_step)
        files.replace(saved, str(last))
    say(f"forwarded {sent} records, the last is step {last}")


def _watch(ended: Event) -> None:
    """Set `ended` when the trainer writes to stdin, closes it or dies; after a death, also bound what is left."""
    trainer = os.getppid()
    while os.getppid() == trainer:
        if select.select([] if ended.is_set() else [sys.stdin], [], [], 1)[0]:
            ended.set()
    ended.set()
    time.sleep(ORPHAN_SECONDS)
    say(f"the trainer is gone and wandb did not finish in {ORPHAN_SECONDS} s; stopped")
    os._exit(1)


def _records(path: Path, ended: Event) -> Iterator[dict[str, Any]]:
    """Yield records as they are written, until `ended`; a file that shrinks is read again from its start."""
    offset, last_look = 0, False
    while not last_look:
        last_look = ended.wait(POLL_SECONDS)
        size = path.stat().st_size if path.exists() else 0
        offset = 0 if size < offset else offset
        if size == offset:
            continue
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
        *lines, rest = text.split(b"\n")  # rest: a line still being written
        offset += len(text) - len(rest)
        for line in lines:
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, KeyError, TypeError):
                say(f"{path}: skipped a line that is no record with a step: {line[:80]!r}")
                continue
            yield record


def _figures(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers of a record, those of nested ones under a/b, and the stage's name."""
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _figures(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) or prefix + key == "stage":
            flat[prefix + key] = value
    return flat


def _run_id(folder: Path) -> str:
    """Return the id of the run, one for the life of its folder."""
    path = folder / "wandb_id"
    if not path.exists():
        files.replace(path, secrets.token_hex(6))
    return path.read_text().strip()


if __name__ == "__main__":
    main()
