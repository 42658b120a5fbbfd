"""`sparse-mlp-ds doctor`: find out what is wrong with the hosts of a run before it is started."""

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any

from sparse_mlp_ds.config.arguments import as_location, as_path
from sparse_mlp_ds.distributed import consistency
from sparse_mlp_ds.errors import UserError

_PORT = 29500  # DeepSpeed's default


def add_to(commands: Any) -> None:
    """Add `doctor` to the command line. commands: argparse's sub-parsers."""
    doctor = commands.add_parser(
        "doctor",
        help="find out what is wrong with the hosts of a run",
        description="Examines this host, or with --hostfile every host named there. Hosts are examined all at the same "
        "time, over ssh, in this working folder and with this Python: the way in which DeepSpeed starts ranks.",
        epilog="Exit codes: 0 if all is well or if there are only warnings; 2 if something is wrong.",
    )
    doctor.add_argument(
        "--hostfile", type=as_path, metavar="FILE", help="DeepSpeed's hostfile: a line `HOST slots=RANKS` for each host"
    )
    doctor.add_argument(
        "--ds_config", type=as_location, metavar="JSON", help="DeepSpeed JSON that has to be the same on all hosts"
    )
    doctor.add_argument(
        "--recipe",
        type=as_location,
        help="recipe that has to be the same on all hosts, and with it the index.json of its data",
    )
    doctor.add_argument(
        "--network",
        action="store_true",
        help="also measure the network between the hosts of --hostfile: every pair of hosts, and the collectives of "
        "the first training stage of --recipe under --ds_config (without them, ordinary sizes); no run may use the "
        "hosts meanwhile",
    )
    doctor.add_argument(
        "--json", action="store_true", help="print everything that was found out as JSON instead of tables"
    )
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from sparse_mlp_ds.doctor import ask, findings, hostfile, network, show
    from sparse_mlp_ds.doctor.facts import Request

    master_port = os.environ.get("MASTER_PORT", "")
    port = int(master_port) if master_port.isdecimal() else _PORT
    hosts = hostfile.read(args.hostfile) if args.hostfile else []
    if args.network and len(hosts) < 2:
        raise UserError("--network measures between hosts; give a --hostfile with two or more")
    files = _files(args.ds_config, args.recipe)
    request = Request(tuple(files), port=port)
    own = socket.gethostname()
    # For a single host that is this one, DeepSpeed uses no ssh.
    if not hosts or (len(hosts) == 1 and hosts[0].name in ("localhost", "127.0.0.1", own)):
        answers = [ask.here(request, hosts[0].slots if hosts else None)]
    else:
        answers = ask.everyone(hosts, request)
    found = findings.find(answers, own, files, port)
    report = {"hosts": [asdict(answer) for answer in answers]} | asdict(found)
    if not args.json:
        show.show(answers)
        for line in found.warnings:
            print(f"warning: {line}")
    if args.network and not found.problems:
        world = sum(network.ranks(answers))
        collectives = _collectives(args.recipe, args.ds_config, world) or network.ordinary(world)
        measured = network.measure(answers, collectives, port)
        found.problems.extend(network.slow_hosts(measured, [answer.host.name for answer in answers]))
        report |= {"network": asdict(measured), "problems": found.problems}
        if not args.json:
            network.show(answers, measured)
    if args.json:
        print(json.dumps(report, indent=1))
    sys.stdout.flush()  # so that the problems, on stderr, come last
    if found.problems:
        raise UserError("\n".join(found.problems))
    if not args.json:
        print(f"nothing wrong with {', '.join(answer.host.name for answer in answers)}")


def _collectives(recipe: str | None, ds_config: str | None, world: int) -> list[Any]:
    """Return the collectives of a step of the recipe's first training stage; none without a recipe."""
    if recipe is None:
        return []
    from sparse_mlp_ds.train import step_collectives
    from sparse_mlp_ds.train.job import resolve

    return step_collectives.of_first_stage(resolve(recipe, ds_config, [], None, "never", world))


def _files(ds_config: str | None, recipe: str | None) -> dict[str, str]:
    """Return the files that have to be the same on all hosts, each with what to do if it is not. Raises UserError."""
    files = {}
    if ds_config:
        from sparse_mlp_ds.config import deepspeed_json

        path = deepspeed_json.DS_CONFIGS.path(ds_config, "--ds_config")
        if not path.is_file():
            raise UserError(f"--ds_config {ds_config}: No such file; give a DeepSpeed JSON's path, or a shipped name")
        files[str(path)] = consistency.FIXES["config"]
    if recipe:
        from sparse_mlp_ds.config import loading
        from sparse_mlp_ds.data import cache, sources

        data = loading.load_recipe(recipe).data
        files |= {str(path): consistency.FIXES["config"] for path in loading.recipe_files(recipe)}
        for source in data.sources:
            index = sources.index_path(source)
            if index and not cache.is_remote(index) and not (data.embedded and not Path(index).exists()):
                files[index] = consistency.FIXES["data"]
    return files
