"""The wandb follower with the real wandb package: offline, with a silent server, without wandb, without a trainer."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread, Timer

import pytest

from sparse_mlp_ds.config.log import Wandb
from sparse_mlp_ds.log.wandb_follow import WandbFollower
from sparse_mlp_ds.watchdog.events import Events
from tests.helpers.wandb_server import Server
from tests.helpers.web import WebServer

pytestmark = pytest.mark.timeout(120)

OFFLINE = Wandb(mode="offline")
ONLINE = Wandb(mode="online")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """No account, no settings of the user's, and a mark by which every process of the test is found."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_FOLLOW_TEST", str(tmp_path))


@pytest.fixture
def wandb():
    return pytest.importorskip("wandb")


@pytest.fixture
def silent_server(monkeypatch):
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:  # the kernel accepts up to the backlog
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield


def test_offline_sends_every_step_once(tmp_path, wandb):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    follower = WandbFollower(tmp_path, OFFLINE, "a run")
    _append(tmp_path, range(1, 11))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('not a record\n{"step": 11, "loss":')  # the second: a line that a killed trainer was writing
    assert follower.close(60) is None
    assert follower.close() is None  # nothing is left to close
    run_id = (tmp_path / "wandb_id").read_text()
    assert len(run_id) == 12 and int(run_id, 16) >= 0
    assert (tmp_path / "wandb_step").read_text() == "10"
    assert "forwarded 10 records" in _log(tmp_path)
    assert _log(tmp_path).count("skipped a line") == 1

    (tmp_path / "metrics.jsonl").unlink()  # resumed from step 8: 9 and 10 are written again
    _append(tmp_path, range(1, 9))
    follower = WandbFollower(tmp_path, OFFLINE, "a run")
    _append(tmp_path, range(9, 15))
    assert follower.close(60) is None
    assert (tmp_path / "wandb_id").read_text() == run_id
    assert (tmp_path / "wandb_step").read_text() == "14"
    assert "forwarded 4 records" in _log(tmp_path)

    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(folders) == 2
    kept = [row for folder in folders for row in _history(folder)]
    assert [row["_step"] for row in kept] == list(range(1, 15))
    expected = {"pretrain/loss": 0.2, "pretrain/moe/0/dropped": 5, "stage": "pretrain"}
    assert {name: value for name, value in kept[4].items() if name != "_step" and name[0] != "_"} == expected


def test_alerts_are_sent_for_the_events_of_this_start_up_to_the_last(tmp_path, wandb):
    """The watchdog writes the last one when the trainer is gone already."""
    events = Events(tmp_path, ())
    events.add("stopped", "an earlier start")
    follower = WandbFollower(tmp_path, OFFLINE.model_copy(update={"alerts": True}), "a run")
    _append(tmp_path, range(1, 4))
    _until(lambda: (tmp_path / "wandb_step").exists())
    events.add("loss_spike", "of step 3", samples=["a"])
    later = Timer(2, events.add, ("failed", "rank 1 is gone"))
    later.start()
    assert follower.close(60) is None
    later.join()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    alerts = [record.alert for record in _stored(folder) if record.WhichOneof("record_type") == "alert"]
    assert [(alert.title, alert.text, alert.level) for alert in alerts] == [
        ("a run: loss_spike", "of step 3", "WARN"),
        ("a run: failed", "rank 1 is gone", "ERROR"),
    ]


def test_a_file_that_shrinks_is_read_from_its_start(tmp_path, wandb):
    _append(tmp_path, range(1, 11))
    follower = WandbFollower(tmp_path, OFFLINE, "a run")
    _until(lambda: (tmp_path / "wandb_step").exists() and (tmp_path / "wandb_step").read_text() == "10")
    (tmp_path / "metrics.jsonl").unlink()
    _append(tmp_path, range(9, 13))
    assert follower.close(60) is None
    assert (tmp_path / "wandb_step").read_text() == "12"
    assert "forwarded 12 records" in _log(tmp_path)


def test_a_forked_process_that_holds_the_pipe_does_not_hold_up_the_end(tmp_path, wandb):
    follower = WandbFollower(tmp_path, OFFLINE, "a run")
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,), daemon=True)
    worker.start()
    try:
        assert follower.close(60) is None
    finally:
        worker.kill()
        worker.join()


def test_a_silent_server_delays_nothing(tmp_path, wandb, silent_server):
    started = time.monotonic()
    follower = WandbFollower(tmp_path, ONLINE, "a run")
    assert time.monotonic() - started < 2
    _append(tmp_path, range(50))
    assert time.monotonic() - started < 2
    _until(lambda: len(_processes(tmp_path)) > 1)  # wandb's own process has started
    started = time.monotonic()
    line = follower.close(patience_seconds=3)
    assert time.monotonic() - started < 8
    assert f"wandb_follow {tmp_path} --project=sparse_mlp_ds --mode=online '--name=a run' < /dev/null" in line
    assert not (tmp_path / "wandb_step").exists()  # so that the line sends everything
    _until(lambda: not _processes(tmp_path), seconds=20)


def test_without_an_answer_the_run_is_kept_offline(tmp_path, wandb, silent_server, monkeypatch):
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    follower = WandbFollower(tmp_path, ONLINE, "a run")
    _append(tmp_path, range(1, 4))
    assert follower.close(100) is None
    assert "no answer from wandb" in _log(tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert [row["_step"] for row in _history(folder)] == [1, 2, 3]
    assert (tmp_path / "wandb_step").read_text() == "3"


def test_without_wandb_one_line_says_what_to_do(tmp_path, monkeypatch):
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "wandb.py").write_text("raise ImportError('no wandb here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(stub), os.environ.get("PYTHONPATH", "")]))
    follower = WandbFollower(tmp_path, ONLINE, "a run")
    process = follower._process
    assert process.wait(60) == 0
    assert _log(tmp_path).count("\n") == 1
    assert "wandb is not installed" in _log(tmp_path) and "pip install wandb" in _log(tmp_path)
    started = time.monotonic()
    assert follower.close() is None
    assert time.monotonic() - started < 2


@pytest.fixture
def server(monkeypatch):
    server = WebServer(("127.0.0.1", 0), Server)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "4")  # wandb asks again and again until then
    monkeypatch.setattr(Server, "deleted", set())
    monkeypatch.setattr(Server, "history", {})
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield Server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_that_was_deleted_on_the_server_gets_a_new_id_aloud(tmp_path, wandb, server, capsys):
    ids = []
    for steps in (range(1, 5), range(5, 9)):
        follower = WandbFollower(tmp_path, ONLINE, "a run")
        _append(tmp_path, steps)
        assert follower.close(60) is None, _log(tmp_path)
        ids.append((tmp_path / "wandb_id").read_text())
        server.deleted.update(ids)
    first, second = ids
    assert first != second and server.history == {first: [1, 2, 3, 4], second: list(range(1, 9))}
    assert (tmp_path / "wandb_step").read_text() == "8"
    said = f"run {first} was deleted on the server; all records are sent again, as run {second}"
    assert said in capsys.readouterr().out and _log(tmp_path).count(said) == 1
    _until(lambda: not _processes(tmp_path), seconds=20)


def test_a_process_that_cannot_be_started_does_not_raise(tmp_path, capsys):
    follower = WandbFollower(tmp_path / "missing", OFFLINE, "a run")
    assert follower.close() is None
    assert "wandb: cannot follow the run" in capsys.readouterr().out


def test_the_processes_end_with_a_killed_trainer(tmp_path, wandb):
    _append(tmp_path, range(1, 4))
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(tmp_path)], env={**os.environ, "RANK": "0", "MASTER_PORT": "1"}
    )
    try:
        _until(lambda: (tmp_path / "wandb_step").exists())
        (follower,) = [pid for pid in _processes(tmp_path) if "\0-m\0sparse_mlp_ds." in _read(pid, "cmdline")]
        variables = dict(item.partition("=")[::2] for item in _read(follower, "environ").split("\0") if item)
        assert variables["CUDA_VISIBLE_DEVICES"] == "" and not {"RANK", "MASTER_PORT"} & set(variables)
        os.kill(follower, signal.SIGINT)  # Ctrl-C is not for it
        time.sleep(1)
        assert follower in _processes(tmp_path)
    finally:
        trainer.kill()
        trainer.wait()
    _until(lambda: not _processes(tmp_path), seconds=20)
    assert "forwarded 3 records" in _log(tmp_path)  # it finished, it was not stopped


TRAINER = """
import sys, time
from pathlib import Path
from sparse_mlp_ds.log.wandb_follow import WandbFollower
from tests.helpers.wandb_server import Server
from sparse_mlp_ds.config.log import Wandb
follower = WandbFollower(Path(sys.argv[1]), Wandb(mode="offline"), "a run")
time.sleep(600)
"""


def _append(folder: Path, steps) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            loss = 1 / step if step else float("nan")
            record = {"stage": "pretrain", "step": step, "loss": loss, "note": "text", "moe": {"0": {"dropped": step}}}
            record |= {"time": 1.0, "eta_seconds": 2.0}
            file.write(json.dumps(record) + "\n")


def _log(folder: Path) -> str:
    return (folder / "wandb.log").read_text()


def _history(folder: Path) -> list[dict]:
    """Return the rows that wandb stored."""
    items = [record.history.item for record in _stored(folder) if record.WhichOneof("record_type") == "history"]
    return [{one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in row} for row in items]


def _stored(folder: Path) -> list:
    """Return what wandb stored: LevelDB's log format, 32 KiB blocks of chunks, around protobuf records."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, whole, records = path.read_bytes(), 7, b"", []  # 7: the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a chunk's header: the block is padded
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def _processes(folder: Path) -> set[int]:
    """Return the processes that carry the test's mark, the dead and this one excepted."""
    numbers = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - {os.getpid()}
    return {pid for pid in numbers if f"WANDB_FOLLOW_TEST={folder}\0" in _read(pid, "environ")}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:  # it has ended, or is another user's
        return ""


def _until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
