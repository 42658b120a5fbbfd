"""RUN/environment.json: where and with what each start of a run took place, one entry per start."""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import torch

from sparse_mlp_ds import __version__
from sparse_mlp_ds.distributed import commit, deepspeed_command, processes
from sparse_mlp_ds.distributed.discovery import Launch
from sparse_mlp_ds.log.console import say
from sparse_mlp_ds.train.preflight import Facts
from sparse_mlp_ds.train.run_folder import RunFolder

NAME = "environment.json"
"""Name of the file in a run folder."""


def add_start(folder: RunFolder, launch: Launch, facts: list[Facts]) -> None:
    """Append the entry of this start; a file that cannot be read or written costs a warning.

    Args:
        folder: the run folder, which belongs to this run.
        launch: how this process, rank 0, was launched.
        facts: what every rank reported before training.
    """
    path = folder.path / NAME
    try:
        starts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not isinstance(starts, list):
            raise ValueError("it holds no list")
    except OSError as error:
        say(f"WARNING: {path}: {error.strerror}; this start is not recorded in it")
        return
    except ValueError as error:
        kept = path.with_name(f"{NAME}.damaged")
        say(f"WARNING: {path}: damaged ({error}); it is kept as {kept.name}, and a new file begins")
        with contextlib.suppress(OSError):
            path.replace(kept)
        starts = []
    folder.write(NAME, [*starts, _start(folder, launch, facts)], indent=1)


def _start(folder: RunFolder, launch: Launch, facts: list[Facts]) -> dict[str, Any]:
    """Return the entry of this start."""
    job, code = folder.job, commit.of_code()
    first = facts[0]
    hosts: dict[str, dict[str, Any]] = {}
    for rank, one in enumerate(facts):
        entry = {"host": one.host, "ranks": [], "device": one.device, "devices": one.devices}
        hosts.setdefault(one.host, entry)["ranks"].append(rank)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": folder.progress.step,
        "resumed_from": str(folder.start.path) if folder.start else None,
        "version": __version__,
        "git": asdict(code) if code else None,
        "code": first.code,
        "python": first.python,
        "packages": dict(item.rsplit(" ", 1) for item in first.packages.split(", ")),
        "cuda": torch.version.cuda,
        "command": sys.orig_argv,
        "deepspeed_command": _user_command(),
        "folder": os.getcwd(),
        "launcher": launch.launcher,
        "hosts": list(hosts.values()),
        "topology": job.topology | {"precision": job.ds_config.precision},
        "data": job.data_fingerprint,
    }


def _user_command() -> list[str] | None:
    """Return the user's `deepspeed` command, or None if none runs on this host."""
    process = deepspeed_command.find()
    return (processes.command(process) or None) if process else None
