"""Strong and weak scaling of a training step over hosts with a slow network between them.

Each host is a network namespace (`tests.helpers.hosts`) with one rank of one thread; they share the cores of this
machine. All groups of hosts exist at the same time, take turns within every round, and sleep while another group is
timed. Exit code 2 means that namespaces cannot be created here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import scaling_report
from sparse_mlp_ds.models.presets import IMAGE_PRESETS
from tests.helpers.hosts import FourHosts, why_not

REPOSITORY = Path(__file__).parents[1]
STEPS = 3
"""Steps that are timed in a row, after one that is not; then it is the turn of the next group."""


def main() -> None:
    """Measure, and print the tables or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=IMAGE_PRESETS, default="sparse_mlp_t4")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 1, 10], help="milliseconds, one way")
    parser.add_argument(
        "--strong", type=int, default=64, help="images of a step over all hosts; a multiple of 8 for each host"
    )
    parser.add_argument("--weak", type=int, default=32, help="images of a step per host")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--read", type=Path, help="show results that --json has written, without measuring")
    parser.add_argument("--plot", type=Path, help="also draw the results into this SVG file")
    args = parser.parse_args()
    if not args.read and (reason := why_not()):
        print(f"benchmarks.scaling: {reason}", file=sys.stderr)
        sys.exit(2)
    results = json.loads(args.read.read_text()) if args.read else _measure(args)
    if args.json:
        print(json.dumps(results))
    else:
        scaling_report.show(results)
    if args.plot:
        scaling_report.plot(results, args.plot)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    hosts = sorted({1, *args.hosts})  # every result is compared with that of one host
    steps, single = [], []
    with tempfile.TemporaryDirectory() as folder, FourHosts(Path(folder) / "lab", max(hosts)) as lab:
        groups = {n: _Group(lab, Path(folder), args.model, n) for n in hosts}
        for group in groups.values():
            group.answer()  # its first answer says that it is ready
        for number in range(args.rounds):
            for delay in args.delays:
                lab.delay(delay or None)
                for n, group in groups.items():
                    about = {"round": number, "hosts": n, "delay": delay}
                    for images in sorted({args.strong // n, args.weak}):
                        measured = group.ask(do="steps", images=images, count=STEPS)
                        steps.append(about | {"images": images} | measured)
                    if n > 1:
                        single += [about | call for call in group.ask(do="collectives")]
        lab.delay(None)
        counts = {n: group.ask(do="count", images=args.strong // n) for n, group in groups.items() if n > 1}
        for group in groups.values():
            group.close()
    return {
        "model": args.model,
        "cores": len(os.sched_getaffinity(0)),
        "strong": args.strong,
        "weak": args.weak,
        "steps": steps,
        "collectives": single,
        "counts": [{"hosts": n, "images": args.strong // n, "ranks": ranks} for n, ranks in counts.items()],
    }


class _Group:
    """One rank on each of the first `count` hosts of a lab; together they train when they are asked to."""

    def __init__(self, lab: FourHosts, folder: Path, model: str, count: int):
        self.processes, self.logs = [], []
        for rank, host in enumerate(lab.names[:count]):
            self.logs.append(folder / f"{count}-{rank}.log")
            variables = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            variables |= {"LOCAL_SIZE": "1", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(29500 + count)}
            command = ["-m", "benchmarks.scaling_rank", model, str(REPOSITORY / "ds_configs/moe.json")]
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [*lab.enter(host), "env", "-C", str(REPOSITORY), sys.executable, *command],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        env=os.environ | variables,
                    )  # fmt: skip
                )

    def ask(self, **command: Any) -> Any:
        """Give all ranks a command and return rank 0's answer."""
        for process in self.processes:
            print(json.dumps(command), file=process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Wait for rank 0's next answer. Raises AssertionError with what the ranks printed if it ends instead."""
        for line in self.processes[0].stdout:
            if line.startswith('{"answer":'):  # DeepSpeed prints other lines
                return json.loads(line)["answer"]
        raise AssertionError("a rank ended\n" + "".join(log.read_text() for log in self.logs))

    def close(self) -> None:
        """End the ranks."""
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait(60)
        self.processes[0].stdout.close()


if __name__ == "__main__":
    main()
