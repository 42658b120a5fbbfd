"""`doctor` on four hosts over ssh: all well, and then something wrong with each of them but the one it runs on."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sparse_mlp_ds
from tests.helpers.hosts import FourHosts, why_not
from tests.helpers.launcher import MOE, REPOSITORY

_reason = why_not()
pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(bool(_reason), reason=_reason)]
BOUND = 30


def _doctor(lab: FourHosts, folder: Path, *arguments: str) -> tuple[int, str, float]:
    """Give the command on node1, as a user does; return its exit code, its output and how long it took, seconds."""
    start = folder / "start"
    start.write_text(
        f"cd {folder}\nexport PYTHONPATH={REPOSITORY}\nexec {sys.executable} -m sparse_mlp_ds.cli.main doctor "
        f"--hostfile hostfile {' '.join(arguments)}\n"
    )
    started = time.monotonic()
    code, output = lab.run("ssh", "node1", "sh", str(start), cwd=folder)
    return code, output, time.monotonic() - started


def test_the_host_with_the_slow_network_is_named(tmp_path):
    with FourHosts(tmp_path / "lab") as lab:
        for name in lab.names:
            _on(lab, name, "mount", "-t", "tmpfs", "-o", "size=2g", "shm", "/dev/shm")
        (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in lab.names))
        run = ["sparse_mlp_ds.cli.main", "doctor", "--hostfile", "hostfile", "--network"]
        run += ["--recipe", "digits", "--ds_config", MOE]
        lab.delay(0, node3=20)  # `head` reaches no host now
        done = subprocess.run(
            [*lab.enter("node1"), "env", "-C", tmp_path, f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", *run],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    print(done.stdout, done.stderr)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and error.startswith("error: node3: its network is slow: "), done.stderr
    # Every expert is on one rank, so none of the four shares its gradients or weights with another.
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for row in (
        "rows all-to-all",
        "batch norm all-reduce",
        "keys all-gather",
        "dense gradients all-reduce",
    ):
        assert any(line.startswith(row) for line in lines), done.stdout


def _on(lab: FourHosts, host: str, *command: str | Path) -> None:
    code, output = lab.run("ssh", host, *map(str, command), cwd=lab.folder)
    assert code == 0, output


def test_what_is_wrong_is_named_with_its_host_and_its_fix(tmp_path):
    other = tmp_path / "other.py"
    other.write_text(Path(sparse_mlp_ds.__file__).read_text() + "\n# of last week\n")
    shutil.copy(MOE, tmp_path / "moe.json")
    with FourHosts(tmp_path / "lab") as lab:
        for name in lab.names:  # the machine's own may be small
            _on(lab, name, "mount", "-t", "tmpfs", "-o", "size=2g", "shm", "/dev/shm")
        (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in lab.names))
        code, output, took = _doctor(lab, tmp_path, "--ds_config", "moe.json")
        print(f"all well after {took:.1f} s\n{output}")
        assert code == 0 and "nothing wrong with node1, node2, node3, node4" in output, output
        code, output, _ = _doctor(lab, tmp_path, "--json")
        said = json.loads(output)
        assert (code, said["problems"]) == (0, []), output
        assert [host["facts"]["host"] for host in said["hosts"]] == lab.names
        assert all(host["facts"]["marker_seen"] and host["facts"]["caller"] == "10.77.0.1" for host in said["hosts"])
        assert not any(host["facts"]["call_error"] for host in said["hosts"]), output

        (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in [*lab.names, "node9"]))
        _on(lab, "node2", "mount", "-t", "tmpfs", "-o", "size=64m", "shm", "/dev/shm")
        _on(lab, "node3", "mount", "--bind", other, sparse_mlp_ds.__file__)
        assert lab.run("ip", "link", "set", "node4", "down", cwd=tmp_path)[0] == 0
        code, output, took = _doctor(lab, tmp_path)
        print(f"all but well after {took:.1f} s\n{output}")
    errors = [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 4), output
    said = {line.split(" ")[0]: line for line in errors}
    assert "is it up" in said["node4:"] and "does not resolve; correct the hostfile" in said["node9:"], output
    assert "/dev/shm holds 64 MiB" in said["node2:"] and "--shm-size=1g" in said["node2:"], output
    assert said["code"].startswith("code differs on node3 from 2 other hosts; bring all hosts to the same"), output
    assert "Traceback" not in output and took < BOUND, took
    assert not list(tmp_path.glob(".doctor-*")), "the marker is left"
