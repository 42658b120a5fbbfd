"""Slurm on the four hosts: munged and slurmctld on `head`, a slurmd on each host, all of Debian's packages.

They are started inside the lab of `hosts.py`, so nothing remains of them when it ends. Key, state, spool and logs are
in the lab's folder; ports and host names are the lab's own.
"""

import os
import shutil
import time
from pathlib import Path

from tests.helpers import hosts
from tests.helpers.hosts import FourHosts

_TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_NODE_MB = 1000  # what a node says of its memory; nothing holds jobs to it

# Of cred_expire: a job that is requeued waits as long as a credential lives, two minutes by default.
_CONF = """
ClusterName=lab
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
NodeName={nodes} CPUs={cpus} RealMemory={memory}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=all Nodes=ALL Default=YES MaxTime=60 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=9
"""


def why_not() -> str:
    """Return why this machine cannot run Slurm on four hosts, or an empty text."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    if absent := [tool for tool in _TOOLS if not shutil.which(tool, path=path)]:
        return f"{', '.join(absent)} not installed: apt-get install munge slurm-wlm"
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        return "slurmd is set up for cgroups of version 1, which this machine does not have"
    return hosts.why_not()


class Slurm(FourHosts):
    """A cluster whose nodes are the hosts, from entering the context until leaving it."""

    def __enter__(self):
        super().__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self.folder / "slurm"
        folder.mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        settings = {"nodes": ",".join(self.names), "cpus": os.cpu_count(), "memory": _NODE_MB, "folder": folder}
        (folder / "slurm.conf").write_text(_CONF.format(**settings))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.conf = folder / "slurm.conf"
        # --force: the folder's parents may be anyone's, as /tmp is.
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid",
                 "log-file": "munge.log", "seed-file": "munge.seed"}  # fmt: skip
        self.slurm("munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
        self.slurm("slurmctld", "-f", self.conf)
        for name in self.names:
            self.slurm("ssh", name, f"PATH=$PATH:/usr/sbin slurmd -f {self.conf} -N {name}")
        deadline = time.monotonic() + 60
        while self.slurm("sinfo", "--noheader", "--format=%T %D") != f"idle {len(self.names)}\n":
            if time.monotonic() > deadline:
                logs = "".join(f"{path}:\n{path.read_text()}" for path in sorted(folder.glob("*.log")))
                raise AssertionError(f"Slurm did not come up\n{logs}")
            time.sleep(0.2)

    def slurm(self, *command: str | Path, cwd: Path | None = None, **env: str) -> str:
        """Run one of Slurm's commands on `head`; return what it printed."""
        code, output = self.run(*command, cwd=cwd or self.folder, seconds=60, SLURM_CONF=str(self.conf), **env)
        assert code == 0, f"{command}: exit code {code}\n{output}"
        return output
