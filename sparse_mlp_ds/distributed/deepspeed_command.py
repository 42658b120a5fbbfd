"""The `deepspeed` command that the user gave, found among this host's processes, for what DeepSpeed does not pass on.

DeepSpeed starts ranks on other hosts through ssh and passes neither its own options to them (it silently reduces
`--num_nodes` to the hosts that the hostfile has) nor most of its environment. But users usually start a run on one of
its hosts, and there the command is a process whose command line ends with the arguments of this rank.
"""

import os
import sys

import psutil

from sparse_mlp_ds.distributed import network, processes
from sparse_mlp_ds.errors import UserError

TRAIN = "sparse_mlp_ds.train"
"""Module that a rank runs instead of train.py after `deepspeed --module sparse_mlp_ds.train ...`."""
NODES = "SPARSE_MLP_DS_NODES"
"""Environment variable with the number of hosts that a run should have, for launchers that do not tell it."""


def find() -> psutil.Process | None:
    """Return the `deepspeed` process that started this rank, or None if none runs on this host as this user."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--local_rank=")]
    ends = [[program, *arguments] for program in (sys.argv[0], TRAIN)]
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            named = any(os.path.basename(part) in ("deepspeed", "ds") for part in command[:2])
            runner = named or "deepspeed.launcher.runner" in command
            if runner and command[-len(arguments) - 1 :] in ends and process.cwd() == os.getcwd():
                return process
        except psutil.Error:  # the process has ended, or belongs to a different user
            continue
    return None


def local(ranks: int) -> list[str]:
    """Return the start of a command that trains with so many ranks on this host; the trainer's flags follow it."""
    if ranks == 1:
        return [sys.executable, "-m", TRAIN]
    launcher = os.path.join(os.path.dirname(sys.executable), "deepspeed")
    where = ("--num_gpus", str(ranks), "--master_port", str(network.free_port()))
    return [launcher, "--log_level", "warning", *where, "--module", TRAIN]


def check_environment() -> None:
    """Raise UserError unless SPARSE_MLP_DS_NODES, where it is set, is a number of hosts."""
    text = os.environ.get(NODES)
    if text is not None and not (text.isdecimal() and int(text) > 0):
        raise UserError(f"{NODES}={text} in the environment is not a number of hosts; correct or unset it")


def nodes() -> int | None:
    """Return the number of hosts that the user asked for, or None if it is not known on this host."""
    if os.environ.get(NODES, "").isdecimal():
        return int(os.environ[NODES])
    process = find()
    if process is None:
        return None
    command = processes.command(process)
    for position, part in enumerate(command):
        name, equals, value = part.partition("=")
        if name == "--num_nodes":
            value = value if equals else command[position + 1]
            return int(value) if value.isdecimal() and int(value) > 0 else None
    return None


def shortfall() -> UserError | None:
    """Return the error to print if DeepSpeed's launcher has started fewer or more hosts than the user asked for."""
    asked, started = nodes(), os.environ.get("CROSS_SIZE")
    if asked is None or started is None or not started.isdecimal() or asked == int(started):
        return None
    return UserError(
        f"{asked} hosts were asked for, {started} were started; bring hostfile and --num_nodes into agreement"
    )
