"""A rank's side of the watchdog: starts the agent that watches this rank, and tells it what the rank is doing.

The agent is a process of its own (`watchdog.agent`), so that a rank which is killed, stopped or stuck in a call is
still noticed, named in the report, and ended.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
import torch.distributed

from sparse_mlp_ds.distributed import comm, deepspeed_command, host, process_group, processes
from sparse_mlp_ds.errors import STOPPED, RunError, StoppedError, UserError, print_error
from sparse_mlp_ds.watchdog import agent
from sparse_mlp_ds.watchdog.channel import Channel
from sparse_mlp_ds.watchdog.diagnosis import Phase

LAUNCHERS = ("deepspeed", "torchrun", "torch.distributed.run", "mpirun", "mpiexec", "orted", "prted", "hydra_pmi_proxy")
"""Texts by which the command of a launcher is recognised."""
WAITING_IN = (os.path.dirname(torch.distributed.__file__) + os.sep, comm.__file__)
"""Files whose functions wait for other ranks: a rank whose innermost stack frames are there is not the one stuck."""
AGENT_SECONDS = 30.0
"""Longest time to wait for something from the agent: its start, or the end that it brings."""


class Watch:
    """What the training loop tells the agent; each call costs one small write to a socket."""

    def __init__(self, agent: Channel | None = None):
        """agent: channel to the agent of this rank; None if the rank is not watched."""
        self._agent = agent
        self.is_over = False
        """Whether this rank exits by itself, or the run is over and the process goes on."""

    @property
    def is_on(self) -> bool:
        """Return whether an agent watches this rank."""
        return self._agent is not None

    def at(self, phase: Phase, stage: str | None = None, step: int | None = None) -> None:
        """Tell which phase begins now. stage, step: None means the same as before."""
        if self._agent:
            given = {"phase": phase, "stage": stage, "step": step}
            self._agent.send(at={name: value for name, value in given.items() if value is not None})

    def begin_run(self, folder: Path, log: Path | None, on_event: Sequence[str]) -> None:
        """Tell on rank 0 where failures are recorded.

        Args:
            folder: The run folder.
            log: File that also takes what the agent prints; None if its standard error leads there anyway.
            on_event: The user's command that is told of failures, see `events.Events`.
        """
        if self._agent:
            path = None if log is None else str(log.absolute())
            self._agent.send(run={"folder": str(folder.absolute()), "log": path, "on_event": list(on_event)})

    def left(self, code: int, words: str = "") -> None:
        """Tell that this rank exits by itself, with an exit code. words: its error."""
        self.is_over = True
        if self._agent:
            self._agent.send(left=code, words=words)

    def failed(self, text: str) -> None:
        """Hand over a traceback and wait to be ended.

        Until then this rank keeps its connections open, so that no other rank fails because they are lost.
        """
        if self._agent:
            self._agent.send(failed=text)
            time.sleep(AGENT_SECONDS)


@contextlib.contextmanager
def watch(limit: float, watched: bool = True) -> Iterator[Watch]:
    """Have this rank watched during the `with` block, inside the process group. Collective.

    Args:
        limit: seconds without progress after which a rank counts as stuck.
        watched: False starts no agent, for a process that outlives its run and must not be ended with it.
    """
    if not watched or not hasattr(os, "pidfd_open"):
        yield Watch()
        return
    channel = _start_agent(limit)
    pid, port = _greeting(channel)
    if process_group.world_size() == 1:
        channel.send(coordinator=("127.0.0.1", port))
    else:
        ports = comm.gather_objects(port, process_group.control_group())
        channel.send(coordinator=(os.environ["MASTER_ADDR"], ports[0]))
    watch = Watch(channel)
    threading.Thread(target=_obey, args=(channel, watch, pid), daemon=True).start()
    try:
        yield watch
    except StoppedError:
        watch.left(STOPPED)
        raise
    except UserError as error:
        watch.left(2, str(error))
        raise
    except Exception as error:
        if not isinstance(error, RunError):
            watch.failed(traceback.format_exc())
        watch.left(1, str(error))
        raise
    except BaseException:
        watch.left(130)
        raise
    watch.left(0)


def _start_agent(limit: float) -> Channel:
    """Start the agent of this rank and return the channel to it. limit: see `watch`."""
    own, other = socket.socketpair()
    with tempfile.TemporaryFile() as stacks:
        faulthandler.register(signal.SIGUSR2, os.dup(stacks.fileno()))  # stays open as long as the process
        plan = agent.Plan(
            rank=process_group.rank(),
            world_size=process_group.world_size(),
            pid=os.getpid(),
            limit=limit,
            channel=other.fileno(),
            stack_file=stacks.fileno(),
            launchers=_launchers(),
            waiting_in=WAITING_IN,
        )
        subprocess.run(
            [sys.executable, "-m", agent.__name__, json.dumps(asdict(plan))],
            pass_fds=[plan.channel, plan.stack_file],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    other.close()
    return Channel(own)


def _launchers() -> list[tuple[int, str]]:
    """Return process and description of the launchers that this rank must not outlive.

    These are the rank's launcher, and on the host where it runs the user's `deepspeed` command.
    """
    found: dict[int, str] = {}
    for process in processes.parents(psutil.Process()):
        command = " ".join(processes.command(process))
        # pdsh's session; the daemon that started it outlives every run
        session = processes.name(process).startswith("sshd")
        if session or any(name in command for name in LAUNCHERS):
            found[process.pid] = f"its launcher, process {process.pid} ({command[:60]})"
        if session or process.pid not in found:
            break
    if process_group.local_rank() == 0 and (user_command := deepspeed_command.find()):
        found[user_command.pid] = f"the deepspeed command, process {user_command.pid}"
    return list(found.items())


def _greeting(channel: Channel) -> tuple[int, int | None]:
    """Return what the agent sends first: the number of its process and, at rank 0, the port of the coordinator."""
    deadline = time.monotonic() + AGENT_SECONDS
    while time.monotonic() < deadline:
        if (records := channel.receive(1.0)) is None:
            break
        for record in records:
            return int(record["pid"]), record["port"]
    rank = process_group.rank()
    raise RunError(f"the watchdog of rank {rank} did not start; look for an error of its process above")


def _obey(channel: Channel, watch: Watch, pid: int) -> None:
    """Exit when the agent says so, or when it is gone. pid: number of the agent's process.

    An agent that is gone cannot end this rank's child processes, so this function does it in its place.
    """
    kills_before, crash = host.memory_kills(), ""
    while (records := channel.receive(None)) is not None:
        for record in records:
            crash = record.get("crashed", crash)
            if "end" in record:
                os._exit(record["end"])
    if watch.is_over and process_group.world_size() == 1:
        return
    kills = host.memory_kills()
    kills = None if kills is None or kills_before is None else kills - kills_before
    print_error(_agent_is_gone(pid, crash, kills))
    for child in psutil.Process().children(recursive=True):
        processes.send(child)
    os._exit(1)


def _agent_is_gone(pid: int, crash: str, kills: int | None) -> str:
    """Return the line that says why this rank ends without its agent.

    Args:
        pid: number of the agent's process.
        crash: the agent's own error; empty if it had none.
        kills: number of processes that this host's kernel has killed for lack of memory while the agent ran; None if
            that is not known.
    """
    fix = "start the same command again, it goes on from the last checkpoint"
    if crash:
        why = f"by an error of its own, {crash} (its traceback is above)"
    elif kills:
        why = f"probably killed for lack of memory, as {kills} processes of this host were meanwhile"
        fix = f"use fewer loader processes (data.workers) or free memory, then {fix}"
    else:
        why = "killed from outside (kill -9)" + ("; the kernel killed nothing for lack of memory" if kills == 0 else "")
    return (
        f"error: rank {process_group.rank()} on {socket.gethostname()} ends, because the process that watches it "
        f"(watchdog, process {pid}) ended unexpectedly: {why}; {fix}"
    )
