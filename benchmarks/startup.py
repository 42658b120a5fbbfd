"""How long commands take before they do anything: processor seconds, beside those of importing torch.

`python -m benchmarks.startup` runs each command `--rounds` times in turn, and prints the median of its processor
seconds (user and system, of the process and its children) and how many that is above the import of torch.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sparse_mlp_ds.shards import digits

TORCH = "python -c 'import torch'"
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Time all commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each command runs (3)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        digits.make(Path(folder) / "digits")
        commands = _commands(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                seconds[name].append(_processor_seconds(command))
    torch = statistics.median(seconds[TORCH])
    print(f"{'command':<44} {'CPU s':>6} {'range':>12} {'above torch':>12}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:<44} {median:>6.2f} {min(taken):>5.2f}..{max(taken):<5.2f} {median - torch:>12.2f}")


def _commands(folder: Path) -> dict[str, list[str]]:
    python, tool = sys.executable, str(Path(sys.executable).with_name("sparse-mlp-ds"))
    data = [f"--set=data.{part}={folder}/digits/{part}" for part in ("train", "val")]
    check = [python, str(ROOT / "train.py"), "--ds_config", "moe", *data, "--check", "--out", str(folder / "run")]
    return {
        TORCH: [python, "-c", "import torch"],
        "python -c 'import sparse_mlp_ds.hub'": [python, "-c", "import sparse_mlp_ds.hub"],
        "sparse-mlp-ds --help": [tool, "--help"],
        "sparse-mlp-ds models": [tool, "models"],
        "python train.py --help": [python, str(ROOT / "train.py"), "--help"],
        "python train.py --ds_config moe --check": check,
    }


def _processor_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
