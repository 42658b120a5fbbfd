"""The configurations whose launches, synchronisations and collectives are recorded in counts.json.

python -m tests.gpu_emulated.configurations     record them again, after a change that lowers them
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tests.gpu_emulated.counts import KINDS
from tests.gpu_emulated.runs import DIGITS, SPARSE_B, STAGES, Result, finish, links_to, recipe, text_recipe, train

FILE = Path(__file__).with_name("counts.json")
BF16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
STEPS = 3
"""Steps of each stage; the second one is counted: no record is written in it, and another one follows."""
Counted = dict[str, dict[str, int]]
"""Kind -> place -> number."""


def digits(folder: Path, seconds: float = 570) -> tuple[Result, dict[str, Counted]]:
    """All stages of the digits on one rank."""
    result = train(folder, recipe(DIGITS, *STAGES), ds=BF16, steps=STEPS, count=(2, 8), seconds=seconds)
    return result, named(result, {"digits, MoCo v3": 2, "digits, fine-tuning with mixup, CutMix and RandAugment": 8})


def digits_on_two_ranks(folder: Path, seconds: float = 570) -> tuple[Result, dict[str, Counted]]:
    """MoCo v3 on two ranks, the experts spread over them."""
    made = recipe(DIGITS, "pretrain", moe={"ep_size": 2})
    result = train(folder, made, ds=BF16, steps=STEPS, count=(2,), ranks=2, seconds=seconds)
    return result, named(result, {"digits, MoCo v3, 2 ranks, ep_size 2": 2})


def sparse_b(folder: Path, seconds: float = 570) -> tuple[Result, dict[str, Counted]]:
    """Sparse-B as in `sparse_b_moco_adamw`: MoCo v3, then DeiT's fine-tuning."""
    short = {"data": recipe(SPARSE_B)["data"], "model": SPARSE_B, "log": {"every_steps": 100}}
    stages = {
        "pretrain": {"batch_size": 8, "hidden": 64, "dim": 32, "knn_images": 16, "knn_every_epochs": None},
        "probe": None,
        "finetune": {"batch_size": 64},
        "evaluate": None,
    }
    made = {"base": "sparse_b_moco_adamw", "name": "narrow", **short, "stages": stages}
    result = train(folder, made, ds=BF16, steps=STEPS, count=(2, 5), seconds=seconds)
    return result, named(result, {"Sparse-B, MoCo v3": 2, "Sparse-B, fine-tuning as DeiT": 5})


def text(folder: Path, seconds: float = 570) -> tuple[Result, dict[str, Counted]]:
    """A sparse gMLP that restores masked tokens, and then learns classes of texts."""
    made = text_recipe(folder, "sparse_gmlp_text")
    made["model"] |= {"dropout": 0.0, "moe_c": {"experts": 4, "top_k": 2, "hidden": 32}}  # so that products are grouped
    result = train(folder, made, ds=BF16, steps=STEPS, count=(2, 5), seconds=seconds)
    return result, named(result, {"text, masked tokens": 2, "text, classes": 5})


def many_experts(folder: Path, seconds: float = 570) -> tuple[Result, dict[str, Counted]]:
    """Sparse-B with 64 experts, without engine and update."""
    command = [sys.executable, "-m", "tests.gpu_emulated.passes", "counts.json"]
    result = finish(command, folder, seconds)
    return result, named(result, {"Sparse-B with 64 experts, forward and backward": 1})


RUNS = {run.__name__: run for run in (digits, digits_on_two_ranks, sparse_b, text, many_experts)}


def named(result: Result, steps: dict[str, int]) -> dict[str, Counted]:
    """Return the counts of steps by the names of their configurations."""
    return {name: result.counts[step] for name, step in steps.items() if step in result.counts}


def versions() -> dict[str, str]:
    """Return the versions of what decides on the counts besides this project."""
    return {package: version(package).partition("+")[0] for package in ("torch", "deepspeed", "kornia")}


def risen(recorded: Counted, found: Counted) -> Iterator[str]:
    """Yield a line for each kind whose total is larger than recorded, and one for each place that rose."""
    for kind in KINDS:
        before, now = recorded.get(kind, {}), found.get(kind, {})
        if sum(now.values()) > sum(before.values()):
            yield f"{kind}: {sum(before.values())} -> {sum(now.values())}"
            for place, number in now.items():
                if number > before.get(place, 0):
                    yield f"    {before.get(place, 0)} -> {number}  {place}"


def main(names: list[str]) -> int:
    """Run configurations and write what they ask for to counts.json."""
    from sparse_mlp_ds.shards.digits import make

    found: dict[str, Counted] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "digits"))
        for name in names or RUNS:
            result, counted = RUNS[name](links_to(Path(folder, "digits"), Path(folder, name)), seconds=1200)
            if result.code or not counted:
                print(result.output, file=sys.stderr)
                return 1
            found |= counted
            for configuration, kinds in counted.items():
                print(configuration, {kind: sum(places.values()) for kind, places in kinds.items()})
    before = json.loads(FILE.read_text())["configurations"] if names and FILE.exists() else {}
    FILE.write_text(json.dumps({"versions": versions(), "configurations": before | found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
