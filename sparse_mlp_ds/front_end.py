"""The `deepspeed` command that the user gave, as this rank's host sees it: what DeepSpeed does not pass on is there.

DeepSpeed starts ranks on other hosts through ssh and hands them neither its own options (`--num_nodes` may be silently
cut down to what the hostfile has) nor most of its environment. But as a rule a user starts a run on one of its hosts,
and there the command is a process that ends with this rank's own arguments.
"""

import os
import sys

import psutil

from sparse_mlp_ds.errors import UserError

LAUNCHER = "deepspeed.launcher.launch"
NODES = "SPARSE_MLP_DS_NODES"
"""Environment variable: number of hosts that a run is to have, for launches that nothing else tells."""


def find() -> psutil.Process | None:
    """Return the `deepspeed` process that started this rank's run, if it runs on this host as this user."""
    mine = [sys.argv[0], *(a for a in sys.argv[1:] if not a.startswith("--local_rank="))]
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            named = any(os.path.basename(part) in ("deepspeed", "ds") for part in command[:2])
            runner = named or "deepspeed.launcher.runner" in command
            if runner and command[-len(mine) :] == mine and process.cwd() == os.getcwd():
                return process
        except psutil.Error:  # gone, or somebody else's
            continue
    return None


def nodes() -> int | None:
    """Return the number of hosts that the user asked for, None if nobody here knows."""
    if os.environ.get(NODES, "").isdecimal():
        return int(os.environ[NODES])
    process = find()
    if process is None:
        return None
    command = process.cmdline()
    for place, part in enumerate(command):
        name, equals, value = part.partition("=")
        if name == "--num_nodes":
            value = value if equals else command[place + 1]
            return int(value) if value.isdecimal() and int(value) > 0 else None
    return None


def shortfall() -> UserError | None:
    """Return what to say if DeepSpeed's launcher has started another number of hosts than was asked for."""
    asked, started = nodes(), os.environ.get("CROSS_SIZE")
    if asked is None or started is None or asked == int(started):
        return None
    return UserError(
        f"{asked} hosts were asked for, {started} were started; bring hostfile and --num_nodes into agreement"
    )
