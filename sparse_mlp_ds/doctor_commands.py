"""`sparse-mlp-ds doctor`: what is wrong with which host, before a run is started."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds import alike
from sparse_mlp_ds.errors import UserError

_PORT = 29500  # DeepSpeed's


def add_to(commands: Any) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with the hosts of a run",
        description="Examines this host, or with --hostfile every host of it, all at the same time over ssh: in this "
        "folder, with this Python, as DeepSpeed starts ranks. Exit codes: 0 all is well, or there are but warnings; "
        "2 something is wrong.",
    )
    doctor.add_argument("--hostfile", type=Path, metavar="FILE", help="a line `HOST slots=RANKS` per host")
    doctor.add_argument("--ds_config", metavar="JSON", help="DeepSpeed JSON that has to be the same on all hosts")
    doctor.add_argument("--recipe", help="recipe that has to be the same, with its data's index.json")
    doctor.add_argument("--json", action="store_true", help="print all that was found out as JSON")
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from sparse_mlp_ds.doctor import ask, findings, hostfile, show
    from sparse_mlp_ds.doctor.facts import Request

    given = os.environ.get("MASTER_PORT", "")
    port = int(given) if given.isdecimal() else _PORT
    hosts = hostfile.read(args.hostfile) if args.hostfile else []
    files = _files(args.ds_config, args.recipe)
    request = Request(tuple(files), port=port)
    own = socket.gethostname()
    if not hosts or (len(hosts) == 1 and hosts[0].name in ("localhost", "127.0.0.1", own)):  # as DeepSpeed: no ssh
        answers = [ask.here(request, hosts[0].slots if hosts else None)]
    else:
        answers = ask.everyone(hosts, request)
    found = findings.find(answers, own, files, port)
    if args.json:
        print(json.dumps({"hosts": [asdict(answer) for answer in answers]} | asdict(found), indent=1))
    else:
        show.show(answers)
        for line in found.warnings:
            print(f"warning: {line}")
    sys.stdout.flush()  # what is wrong comes last
    if found.problems:
        raise UserError("\n".join(found.problems))
    if not args.json:
        print(f"nothing wrong with {', '.join(answer.host.name for answer in answers)}")


def _files(ds_config: str | None, recipe: str | None) -> dict[str, str]:
    """Return the files that have to be the same everywhere, with what to do where they are not. Raises UserError."""
    files = {}
    if ds_config:
        if not Path(ds_config).is_file():
            raise UserError(f"--ds_config {ds_config}: No such file; give a DeepSpeed JSON's path")
        files[ds_config] = alike.FIXES["config"]
    if recipe:
        from sparse_mlp_ds import config
        from sparse_mlp_ds.data import cache, sources

        data = config.load_recipe(recipe).data
        files |= {str(path): alike.FIXES["config"] for path in config.recipe_files(recipe)}
        for source in (*data.train, *data.val):
            index = sources.index_path(source)
            if index and not cache.is_remote(index) and not (data.embedded and not Path(index).exists()):
                files[index] = alike.FIXES["data"]
    return files
