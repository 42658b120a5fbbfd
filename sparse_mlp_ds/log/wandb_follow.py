"""Sends the records of a run to Weights & Biases from a process of its own, which reads RUN/metrics.jsonl.

So nothing that wandb does can stop or slow training. The trainer holds a `WandbFollower`; the process that it starts
runs `main`. Records that wandb did not take by the end of a run can be sent later with the command that `close` prints.
"""

import argparse
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
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.log import results
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.log.output import begin_output, end_output
from sparse_mlp_ds.log.wandb_alerts import Alerts

if TYPE_CHECKING:  # the process must not wait for the import of pydantic and torch
    from sparse_mlp_ds.config.log import Wandb

POLL_SECONDS = 0.5
"""Seconds between two looks at metrics.jsonl."""
ORPHAN_SECONDS = 60
"""Seconds that the process may go on after its trainer died, so that a silent server cannot keep it for ever."""
DEFAULTS = {
    "INIT_TIMEOUT": "30",
    "QUIET": "true",
    "CONSOLE": "off",
    "ERROR_REPORTING": "false",  # it delays the exit by 20 s when the server is silent
    "X_DISABLE_STATS": "true",  # wandb would measure this process, not the trainer
    "X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # 15 s of an offline run would be lost with a killed node
}
"""Environment variables WANDB_* that are set where the user has not set them; wandb ignores names it does not know."""


DELETED = "previously created and deleted"
"""What the server says of the id of a run that was deleted there; such an id cannot be used again."""
_ID, _STEP = "wandb_id", "wandb_step"  # files of the run folder: the run's id there, the last step that was sent


class WandbFollower:
    """The trainer's handle on the process.

    Nothing here raises because of wandb, and nothing but `close` waits for it.
    """

    def __init__(self, run_folder: Path, settings: "Wandb", run_name: str):
        """Start to follow run_folder/metrics.jsonl, which need not exist yet.

        settings: the recipe's `log.wandb` section, whose mode is not `disabled`. run_name: shown by wandb.
        """
        self._log = run_folder.absolute() / "wandb.log"
        self._id_file = run_folder.absolute() / _ID
        self._id = self._read_id()
        options = {"project": settings.project, "mode": settings.mode, "name": run_name, "entity": settings.entity}
        options |= {"group": settings.group}
        self._command = [sys.executable, "-m", "sparse_mlp_ds.log.wandb_follow", str(run_folder.absolute())]
        self._command += [f"--{key}={value}" for key, value in options.items() if value is not None]
        self._command += [f"--tag={tag}" for tag in settings.tags]
        self._command += ["--alerts"] * settings.alerts
        ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        environment = {k: v for k, v in os.environ.items() if k not in ranks and not k.startswith("MASTER_")}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            say(f"wandb: cannot follow the run ({error}); {self._later()}")

    def look(self) -> None:
        """Say it if the process had to take a new id, because the run was deleted on the server."""
        before, self._id = self._id, self._read_id() or self._id
        if before and self._id != before:
            say(
                f"WARNING: wandb: run {before} was deleted on the server; all records are sent again, as run {self._id}"
            )

    def _read_id(self) -> str | None:
        with suppress(OSError):
            return self._id_file.read_text(encoding="utf-8").strip()
        return None

    def close(self, patience_seconds: float = 15) -> str | None:
        """Let the process send what is left, then end it. Later calls do nothing.

        metrics.jsonl must be complete. Returns None if everything was sent, else the line that was printed.
        """
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None  # it was started with a pipe
        with suppress(OSError), process.stdin:  # the process may have ended already
            process.stdin.write(b"\n")  # loader workers forked from this process keep the pipe open: no EOF then
        try:
            code = process.wait(patience_seconds)
            self.look()
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
    """Send the records of a run folder to Weights & Biases until standard input is closed or says so, then finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the trainer
    parser = argparse.ArgumentParser(prog="python -m sparse_mlp_ds.log.wandb_follow", description=main.__doc__)
    parser.add_argument("run_folder", type=Path, help="the folder that holds metrics.jsonl")
    parser.add_argument("--project", required=True, help="project of the run at Weights & Biases")
    parser.add_argument("--mode", required=True, help="online, or offline to keep the run on disk")
    parser.add_argument("--name", required=True, help="name of the run at Weights & Biases")
    parser.add_argument("--alerts", action="store_true", help="send the run's events as alerts")
    parser.add_argument("--entity", help="user or team that owns the project (default: your own)")
    parser.add_argument("--group", help="group of runs at Weights & Biases that it belongs to")
    parser.add_argument("--tag", action="append", dest="tags", help="tag of the run; may be given several times")
    arguments = parser.parse_args()
    ended = Event()
    Thread(target=_watch, args=(ended,), daemon=True).start()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(f"WANDB_{name}", value)
    try:
        from wandb import init  # noqa: F401  # by name: `import wandb` also succeeds for any folder called wandb
    except ImportError as error:
        say(f"wandb is not installed ({error}); nothing is sent: pip install wandb, or set log.wandb.mode: disabled")
        return

    with files.lock(arguments.run_folder / ".wandb_lock"):  # that of an earlier try may still be finishing
        _follow(arguments, ended)


def _follow(arguments: argparse.Namespace, ended: Event) -> None:
    """Send the records of a run folder until the run has ended, then finish. arguments: of the command line."""
    folder: Path = arguments.run_folder
    options = {key: getattr(arguments, key) for key in ("project", "entity", "name", "group", "tags")}
    config = folder / "config.yaml"
    options |= {"config": yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else None}
    options |= {"dir": str(folder)}
    run, online = _begin(folder, arguments.mode == "online", options)
    alerts = Alerts(folder, run) if arguments.alerts else None
    saved = folder / _STEP
    last = max(int(saved.read_text(encoding="utf-8")) if saved.exists() else -1, run.starting_step - 1)
    sent = 0
    for record in _records(folder / "metrics.jsonl", ended):
        if results.is_result(record):  # again after a restart, which changes nothing
            run.summary.update(_figures(record))
        elif record["step"] > last:
            last, sent = record["step"], sent + 1
            run.log(_figures(record), step=last, commit=True)
            if not online:
                _keep(saved, last)
        if alerts:
            alerts.send()
    if alerts:
        alerts.send_last()
    run.finish()
    if online:  # only now has the server everything; after a kill it tells what it has (starting_step)
        _keep(saved, last)
    say(f"forwarded {sent} records, the last is step {last}")


def _begin(folder: Path, online: bool, options: dict[str, Any]) -> tuple[Any, bool]:
    """Begin the run at Weights & Biases, and return it and whether it is online; if it cannot be, it is kept offline.

    A run that was deleted there begins anew, with a new id and all of its records.
    """
    from wandb import init, teardown

    options = options | {"resume": "allow"}
    old = _run_id(folder)
    try:
        return init(mode="online" if online else "offline", id=old, **options), online
    except Exception as error:
        if not online:
            raise
        teardown()  # until then the failed run keeps its id
        if DELETED in str(error):
            for name in (_STEP, _ID):
                (folder / name).unlink(missing_ok=True)
            say(f"run {old} was deleted on the server; all records are sent again, as run {_run_id(folder)}")
            return _begin(folder, online, options)
        run = init(mode="offline", id=old, **options)
        reason = str(error).partition("\n")[0]
        say(f"no answer from wandb ({reason}); kept offline, send it with: wandb sync {folder}/wandb/offline-run-*")
        return run, False


def _watch(ended: Event) -> None:
    """Set `ended` when the trainer writes to standard input, closes it or dies.

    If it died, end this process too after `ORPHAN_SECONDS`.
    """
    trainer = os.getppid()
    while os.getppid() == trainer:
        if select.select([] if ended.is_set() else [sys.stdin], [], [], 1)[0]:
            ended.set()
    ended.set()
    time.sleep(ORPHAN_SECONDS)
    say(f"the trainer is gone and wandb did not finish in {ORPHAN_SECONDS} s; stopped")
    os._exit(1)


def _records(path: Path, ended: Event) -> Iterator[dict[str, Any]]:
    """Yield records as they are written, until `ended` is set; a file that shrinks is read again from its start."""
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
        *lines, rest = text.split(b"\n")  # rest: a line that is still being written
        offset += len(text) - len(rest)
        for line in lines:
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, KeyError, TypeError):
                say(f"{path}: skipped a line that is no record with a step: {line[:80]!r}")
                continue
            yield record


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a record as STAGE/NAME, and the name of its stage."""
    stage = record.get("stage", "")
    figures = {name: value for name, value in _flat(record).items() if name not in ("step", "time", "eta_seconds")}
    return {f"{stage}/{name}" if stage else name: value for name, value in figures.items()} | {"stage": stage}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers of a tree; one of a nested mapping gets the name a/b."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[prefix + key] = value
    return flat


def _keep(path: Path, step: int) -> None:
    """Write down the last step that was sent; if the disk is full, the next one is tried."""
    with suppress(OSError):
        files.replace(path, str(step))


def _run_id(folder: Path) -> str:
    """Return the id of the run at Weights & Biases, which stays as long as neither folder nor run are deleted."""
    path = folder / _ID
    if not path.exists():
        files.replace(path, secrets.token_hex(6))
    return path.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    begin_output()  # whose file may be on a full disk
    try:
        main()
    finally:
        end_output()
