"""Four hosts on one machine: an sshd each, in namespaces of their own, joined by a bridge.

A host is a network, process, mount and hostname namespace. All of them lie inside one outer set of namespaces, the lab,
whose first process ends when its standard input closes. Everything follows from that:

* Nothing is named or written outside the lab: the bridge, the interfaces, /run/netns, /etc/hosts and /etc/ssh in it are
  the lab's own. So nothing can clash with the machine, or with a second lab, and there is no list of things to undo.
* The kernel takes it all down when that first process ends, however the test ends: a test killed with SIGKILL closes
  the pipe too. Processes that were started on the hosts die with them.
* What a launcher does to a whole host stays there: DeepSpeed answers Ctrl-C with `pkill -f` on every host, which
  would hit every other DeepSpeed job of this machine if the hosts shared its processes.

The file system is shared, as a cluster's is. Host 1 is `node1`, 10.77.0.1, and so on; the lab itself, which is no host
of the job, is `head`, 10.77.0.254.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from sparse_mlp_ds.distributed import processes

_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# --kill-child: whoever kills `unshare` itself takes the lab down as well.
_UNSHARE = ("unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc")

_LAB = """
mount --bind "$1/etc-hosts" /etc/hosts
mount --bind "$1/etc-ssh" /etc/ssh
mount -t tmpfs lab /run
mkdir /run/sshd
hostname head
ip link set lo up
ip link add lab type bridge
ip address add 10.77.0.254/24 dev lab
ip link set lab up
for i in $(seq "$2"); do
    ip netns add "node$i"
    ip link add "node$i" type veth peer name eth0 netns "node$i"
    ip link set "node$i" master lab up
    ip -n "node$i" address add "10.77.0.$i/24" dev eth0
    ip -n "node$i" link set eth0 up
    ip -n "node$i" link set lo up
    nsenter --net="/run/netns/node$i" unshare --uts --ipc --mount --pid --fork --kill-child --mount-proc \\
        sh -c 'hostname "$1" && exec "$(command -v sshd)" -D -e' sh "node$i" </dev/null >"$1/node$i.log" 2>&1 &
done
for i in $(seq "$2"); do
    timeout 30 sh -c 'until ssh "$1" true 2>"$2"; do sleep 0.1; done' sh "node$i" "$1/ssh.log" </dev/null >&2
done
echo ready
read -r _ || true
"""

_SSHD = """HostKey /etc/ssh/key
AuthorizedKeysFile /etc/ssh/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
"""

_SSH = """IdentityFile /etc/ssh/key
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
ConnectTimeout 5
ServerAliveInterval 5
ServerAliveCountMax 2
"""


def _path() -> str:
    """Return PATH with the folders where `ip` and `sshd` are, which not every shell of root has."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def why_not() -> str:
    """Return why this machine cannot run four hosts, or an empty text."""
    if os.geteuid():
        return "only root may make network namespaces"
    tools = ("ip", "pdsh", "sshd", "ssh", "ssh-keygen", "nsenter", "unshare")
    if absent := [tool for tool in tools if not shutil.which(tool, path=_path())]:
        return f"{', '.join(absent)} not installed: apt-get install openssh-server pdsh iproute2"
    # The same kinds of things that the lab is made of; they vanish with the shell.
    attempt = "mount -t tmpfs lab /run; ip link add lab type bridge; ip netns add node; ip link add node type veth"
    made = subprocess.run(
        [*_UNSHARE, "sh", "-ec", attempt], capture_output=True, text=True, env=os.environ | {"PATH": _path()}
    )
    return f"namespaces cannot be made here: {made.stderr.strip()}" if made.returncode else ""


class FourHosts:
    """`count` hosts, from entering the context until leaving it; `folder` takes their keys and logs."""

    def __init__(self, folder: Path, count: int = 4):
        self.folder = folder
        self.names = [f"node{i + 1}" for i in range(count)]
        self._wire: subprocess.Popen | None = None

    def __enter__(self):
        ssh = self.folder / "etc-ssh"
        ssh.mkdir(parents=True)
        # One throw-away key: the hosts' and their user's.
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / "key"], check=True)
        (ssh / "sshd_config").write_text(_SSHD)
        (ssh / "ssh_config").write_text(_SSH)
        addresses = {"localhost": "127.0.0.1", "head": "10.77.0.254"}
        addresses |= {name: f"10.77.0.{i}" for i, name in enumerate(self.names, 1)}
        (self.folder / "etc-hosts").write_text("".join(f"{ip} {name}\n" for name, ip in addresses.items()))
        with (self.folder / "lab.log").open("wb") as errors:
            self._lab = subprocess.Popen(
                [*_UNSHARE, "sh", "-ec", _LAB, "sh", self.folder, str(len(self.names))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env=os.environ | {"PATH": _path()}, start_new_session=True,
            )  # fmt: skip
        try:
            if self._lab.stdout.readline() != b"ready\n":
                logs = "".join(f"{path}:\n{path.read_text()}" for path in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"the hosts did not come up\n{logs}")
            self._first = psutil.Process(self._lab.pid).children()[0].pid
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        try:
            self._unplug()
        finally:
            self._lab.stdin.close()
            self._lab.stdout.close()
            # `unshare` returns once the kernel has killed and buried every process in the lab.
            self._lab.wait(60)

    def enter(self, host: str) -> list[str]:
        """Return what makes a command run on a host if put before it; it gets there without the network."""
        (outer,) = (p for p in psutil.Process(self._first).children() if processes.command(p)[-1:] == [host])
        return ["nsenter", f"--target={outer.children()[0].pid}", *_NAMESPACES]

    def delay(self, milliseconds: float | None, **of_hosts: float) -> None:
        """Let what a host sends to another arrive that much later, see `wire`; None: the bridge, as at first.

        of_hosts: milliseconds of single hosts, by name, in place of the general ones.

        While there is a delay, `head` and the hosts do not reach one another.
        """
        self._unplug()
        if milliseconds is None:
            return
        command = [sys.executable, Path(__file__).with_name("wire.py")]
        command += [f"{name}={of_hosts.get(name, milliseconds)}" for name in self.names]
        with (self.folder / "wire.log").open("ab") as errors:
            self._wire = subprocess.Popen(
                ["nsenter", f"--target={self._first}", "--net", *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | {"PATH": _path()},
            )  # fmt: skip
        if self._wire.stdout.readline() != b"ready\n":
            raise AssertionError(f"no wire: {(self.folder / 'wire.log').read_text()}")

    def _unplug(self) -> None:
        if self._wire:
            self._wire.stdin.close()
            self._wire.stdout.close()
            self._wire.wait(30)
            self._wire = None

    def run(self, *command: str | Path, cwd: Path, seconds: float = 300, **env: str) -> tuple[int, str]:
        """Run a command on `head`; return its exit code and what it printed."""
        log = self.folder / "command.log"
        enter = ["nsenter", f"--target={self._first}", *_NAMESPACES, "env", "-C", cwd]
        with log.open("wb") as output:
            try:
                done = subprocess.run(
                    [*enter, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env=os.environ | {"PATH": _path()} | env, timeout=seconds,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise AssertionError(f"no end after {seconds} s:\n{log.read_text(errors='replace')}")
        return done.returncode, log.read_text(errors="replace")
