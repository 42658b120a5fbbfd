"""How `doctor` reads a hostfile, asks hosts, and reads what they answer."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.config import loading
from sparse_mlp_ds.doctor import ask, facts, hostfile, remote
from sparse_mlp_ds.doctor.facts import ABSENT, MARK, Request
from sparse_mlp_ds.doctor.hostfile import Host
from sparse_mlp_ds.errors import UserError
from tests.unit.test_findings import ONE


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# ours\n\nnode1 slots=8\n  me@node-2.example   slots=4  # new\n")
    assert hostfile.read(path) == [Host("node1", 8), Host("me@node-2.example", 4)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("node1\n", ["line 1", "'node1' names no host", "write `HOST slots=RANKS`"]),
        ("node1 slots=x\n", ["line 1"]),
        ("node1 slots=0\n", ["line 1"]),
        ("-oProxyCommand=reboot slots=1\n", ["line 1", "names no host"]),
        ("node1;reboot slots=1\n", ["line 1"]),
        ("node1 slots=1\nnode1 slots=2\n", ["line 2", "node1 comes twice", "one line with all its slots"]),
        ("# nobody\n", ["names no host"]),
        (None, ["No such file", "write one"]),
        (b"\xff\xfe", ["is not a text file"]),
    ],
)
def test_a_bad_hostfile_ends_in_one_line(tmp_path, capsys, text, parts):
    path = tmp_path / "hostfile"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as ended:
        main.main(["doctor", "--hostfile", str(path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in [str(path), *parts]), line


def test_every_bad_line_is_named(tmp_path):
    (tmp_path / "hostfile").write_text("node1\nnode2 slots=1\nnode3 slots=\n")
    with pytest.raises(UserError) as error:
        hostfile.read(tmp_path / "hostfile")
    assert len(str(error.value).splitlines()) == 2


LINE = MARK + json.dumps(asdict(ONE))


@pytest.mark.parametrize("before", ["", "Welcome!\nlast login: never\n", '{"host": "motd"}\n', "no end of line "])
def test_what_a_login_prints_is_no_answer(before):
    assert remote.parse(before + LINE + "\nlogout\n") == ONE


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("", "ended without an answer"),
        ("Welcome!\n", "ended without an answer"),
        (MARK + "{", "cannot be read (no JSON)"),
        (MARK + "[]", "cannot be read"),
        (MARK + json.dumps(asdict(ONE) | {"cores": "8"}), "cannot be read (cores)"),
        (MARK + json.dumps({k: v for k, v in asdict(ONE).items() if k != "code"}), "cannot be read (code)"),
        (MARK + json.dumps(asdict(ONE) | {"host": "\x1b[2J"}), "cannot be read (control characters)"),
        (MARK + "__import__('os').abort()", "cannot be read"),
    ],
)
def test_a_malformed_answer(output, said):
    with pytest.raises(ValueError) as error:
        remote.parse(output)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "errors", "said"),
    [
        (255, "ssh: Could not resolve hostname n: Name or service not known", "does not resolve; correct the hostfile"),
        (255, "me@n: Permission denied (publickey).", "ssh-copy-id n"),
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R n"),
        (255, "No ED25519 host key is known\nHost key verification failed.", "log in once (ssh n)"),
        (255, "ssh: connect to host n port 22: Connection refused", "refuses ssh; start its sshd"),
        (255, "ssh: connect to host n port 22: Connection timed out", "does not answer to ssh within 5 s"),
        (255, "Timeout, server n not responding.", "stopped answering"),
        (255, "ssh: connect to host n port 22: No route to host", "no route to host; is it up"),
        (255, "banner\nkex_exchange: \x1b[31mclosed", "ssh fails: kex_exchange:  [31mclosed; `ssh n true` has to work"),
        (255, "", "ssh fails: exit code 255"),
        (101, "sh: cd: can't cd", "has no folder"),
        (127, "env: no such file", f"has no {sys.executable}; install the same environment"),
        (1, "/python: No module named sparse_mlp_ds.doctor", "this version of sparse_mlp_ds is not there"),
        (1, "Traceback\nMemoryError: none left", "cannot answer: MemoryError: none left; run `python -m"),
    ],
)
def test_why_a_host_did_not_answer(code, errors, said):
    text = remote.why("n", code, errors)
    assert said in text and "\n" not in text


class Ssh:
    """An `ssh` for tests: it runs the command here, except on hosts that have a script of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "ssh").write_text(
            f"#!/bin/sh\nfor command; do :; done\nwhile [ $1 != -- ]; do shift; done\n"
            f"[ -e {folder}/$2.sh ] && exec sh {folder}/$2.sh\n"
            "echo Welcome\nexport SSH_CONNECTION='127.0.0.1 1 127.0.0.1 22'\nexec sh -c \"$command\"\n"
        )
        (folder / "ssh").chmod(0o755)

    def on(self, host: str, script: str) -> None:
        (self.folder / f"{host}.sh").write_text(script)


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Also a current folder, with a space and a quote in its name, and the environment that finds the package."""
    (tmp_path / "bin").mkdir()
    folder = tmp_path / "it's here"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(main.__file__).parents[2]))
    monkeypatch.chdir(folder)
    return Ssh(tmp_path / "bin")


def test_hosts_are_asked_and_nothing_is_left(ssh):
    Path("moe.json").write_text("{}")
    ssh.on("down", "echo 'ssh: connect to host down port 22: No route to host' >&2; exit 255")
    answers = ask.everyone([Host("one", 1), Host("down", 1), Host("two", 1)], Request(("moe.json", "gone.json")))
    assert [answer.host.name for answer in answers] == ["one", "down", "two"]
    assert answers[1].facts is None and "no route to host" in answers[1].error
    for answer in (answers[0], answers[2]):
        assert answer.facts.marker_seen and answer.facts.caller == "127.0.0.1" and answer.facts.call_error == ""
        assert answer.facts.files["gone.json"] == ABSENT != answer.facts.files["moe.json"]
        assert abs(answer.ahead) <= answer.unsure + 0.1, "it is the same clock"
    assert os.listdir() == ["moe.json"]


def test_a_host_that_hangs_costs_its_time_out(ssh, monkeypatch):
    monkeypatch.setattr(ask, "LIMIT_SECONDS", 1.0)
    ssh.on("slow", "exec sleep 60")
    (answer,) = ask.everyone([Host("slow", 1)], Request())
    assert "no answer within 1 s; look for a file system that hangs" in answer.error and answer.seconds < 10


def test_the_marker_goes_even_if_the_command_is_told_to_end(ssh):
    ssh.on("slow", f"touch {ssh.folder}/asked; exec sleep 60")
    Path("hostfile").write_text("slow slots=1\n")
    with subprocess.Popen(
        [sys.executable, "-m", "sparse_mlp_ds.cli.main", "doctor", "--hostfile", "hostfile"]
    ) as process:
        while not (ssh.folder / "asked").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert len(list(Path().glob(".doctor-*"))) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert os.listdir() == ["hostfile"]


def test_the_marker_is_where_runs_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with ask._marker() as marker:
        assert marker.startswith("runs/.doctor-") and facts.look(Request(marker=marker)).marker_seen
    assert not facts.look(Request(marker=marker)).marker_seen


def test_nobody_listens(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("SSH_CONNECTION", "127.0.0.1 50000 127.0.0.1 22")
        assert facts._call_back(port) == ("127.0.0.1", "")
    assert facts._call_back(port) == ("127.0.0.1", "Connection refused")


def test_torch_is_asked_where_there_are_device_files(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "_DEVICE_FILES", (str(tmp_path),))
    monkeypatch.setattr(facts, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = facts._device()
    assert found.blind and found.device == "cpu" and found.torch_seconds >= 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n")
    found = facts._device()
    assert (found.device, found.devices, found.blind) == ("NVIDIA H100", 2, False)
    assert found.driver == "CUDA 13.0, driver 580.65.06"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in facts._device().torch_error


@pytest.mark.parametrize("kind", ["x86_64 Kernel Module", "Open Kernel Module for x86_64"])
def test_the_driver_is_read(kind):
    text = f"NVRM version: NVIDIA UNIX {kind}  580.65.06  Sun Jul 27 07:13:43 UTC 2025\nGCC version: gcc 13.3.0\n"
    assert facts._DRIVER_VERSION.search(text)[1] == "580.65.06"


def test_a_taken_port_is_seen():
    with socket.create_server(("", 0)) as server:
        assert facts.look(Request(port=server.getsockname()[1])).port_taken


def test_this_host_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("hostfile").write_text("localhost slots=1\n")
    with contextlib.suppress(SystemExit):  # this machine need not be well
        main.main(["doctor", "--json", "--recipe", "digits", "--hostfile", "hostfile"])
    (host,) = json.loads(capsys.readouterr().out)["hosts"]
    assert host["facts"]["host"] == socket.gethostname() and host["host"]["slots"] == 1
    assert list(host["facts"]["files"]) == [str(loading.RECIPES.folder / "digits.yaml")], "its data is not made yet"


def test_the_files_of_a_run_are_the_recipe_its_bases_and_the_indexes(tmp_path, monkeypatch):
    from sparse_mlp_ds.cli.doctor import _files

    monkeypatch.chdir(tmp_path)
    Path("moe.json").write_text("{}")
    Path("mine.yaml").write_text("base: digits\ndata: {embedded: null, train: 'here/{a,b}.tar', val: there}\n")
    digits = str(loading.RECIPES.folder / "digits.yaml")
    files = ["moe.json", "mine.yaml", digits, "here/index.json", "there/index.json"]
    assert list(_files("moe.json", "mine.yaml")) == files
    with pytest.raises(UserError, match="--ds_config gone.json: No such file; give"):
        _files("gone.json", None)
    with pytest.raises(UserError, match="--recipe digitz: no such recipe; did you mean 'digits'"):
        _files(None, "digitz")
