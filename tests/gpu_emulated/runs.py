"""Starting the real train.py on emulated GPUs, in processes of its own, with recipes that are quick."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sparse_mlp_ds.distributed.network import free_port
from tests.helpers import text_rows

REPOSITORY = Path(__file__).parents[2]
OPTIMIZER = {"name": "adamw", "base_lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 0}
JITTER = {"p": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
VIEW = {"jitter": JITTER, "grayscale": 0.2, "blur": {"p": 0.5, "sigma": [0.1, 1.0]}, "solarize": 0.2}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "kind": "pretrain", "epochs": 1, "batch_size": 32, "temperature": 0.2, "momentum": 0.99, "hidden": 32,
        "dim": 16, "momentum_precision": "run", "knn_images": 16, "optimizer": OPTIMIZER, "views": [VIEW, VIEW],
    },
    "probe": {
        "kind": "probe", "epochs": 1, "batch_size": 32, "rates": [0.1, 1.0],
        "optimizer": OPTIMIZER | {"name": "sgd", "weight_decay": 0.0},
    },
    "finetune": {
        "kind": "finetune", "epochs": 1, "batch_size": 32, "label_smoothing": 0.1, "ema": 0.99, "optimizer": OPTIMIZER,
        "mix": {"mixup": 0.8, "cutmix": 1.0}, "view": {"rand_augment": {"ops": 2, "magnitude": 9}, "erase": 0.25},
    },
    "evaluate": {"kind": "evaluate"},
}  # fmt: skip
DIGITS = {"name": "sparse_mlp_digits", "width": 16, "sparse_width": 16, "dense_blocks": 1, "sparse_blocks": 1}
SPARSE_B = {
    "name": "sparse_mlp_b16", "image_size": 32, "patch_size": 8, "width": 64, "token_hidden": 32, "channel_hidden": 64,
    "sparse_tokens": 32, "sparse_width": 32, "moe_s": {"hidden": 32}, "moe_c": {"hidden": 32},
}  # fmt: skip
"""Sparse-B with its own blocks and experts, but narrow: what it asks of a GPU does not depend on its widths."""
PRESETS = {
    "gmlp_text": "gmlp_text_speeches",
    "amlp_text": "amlp_text_speeches",
    "sparse_gmlp_text": "sparse_gmlp_text_speeches",
    "sparse_blocks": "gmlp_text_speeches",
    "bert": "bert_speeches",
    "mixer_text": "mixer_text_speeches",
}
"""Family of `text_rows.spec` -> a preset of it."""
TEXT_TRAINING = {"steps": 6, "batch_size": 16, "optimizer": {"name": "adamw", "base_lr": 1e-3}}
TRANSFORMER = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 4, "heads": 2}


def recipe(model: dict[str, Any], *stages: str, **overrides: Any) -> dict[str, Any]:
    """Return a recipe of some of STAGES. overrides: sections that replace keys of the stage, or of the recipe."""
    data = {"embedded": "digits", "train": "digits/train", "val": "digits/val", "classes": 10, "workers": 0}
    made: dict[str, Any] = {"name": "emulated", "data": data, "model": model, "moe": {"group_images": 8}}
    made |= {"stages": {name: copy.deepcopy(STAGES[name]) for name in stages}, "log": {"every_steps": 100}}
    for name, section in overrides.items():
        target = made["stages"] if name in made["stages"] else made
        target[name] = target.get(name, {}) | section
    return made


def text_recipe(folder: Path, family: str) -> dict[str, Any]:
    """Write rows of tokens in a folder, and return a recipe that restores masked ones, then learns classes."""
    for split, count in (("train", 200), ("val", 50)):
        text_rows.write(folder / "text" / split, text_rows.rows(count))
    return _of_text(
        family,
        mlm={"kind": "mlm", "val_every_steps": 2, **TEXT_TRAINING},
        perplexity={"kind": "evaluate"},
        classes={"kind": "finetune_text", "ema": 0.9, **TEXT_TRAINING},
        evaluate={"kind": "evaluate"},
    )


def answers_recipe(folder: Path) -> dict[str, Any]:
    """Write questions with contexts in a folder, and return a recipe that learns to answer them."""
    for split, count in (("train", 100), ("val", 30)):
        text_rows.write_questions(folder / "text" / split, count)
    training = {"kind": "finetune_span", "from_scratch": True, "max_answer": 3, **TEXT_TRAINING}
    return _of_text("sparse_gmlp_text", answers=training, evaluate={"kind": "evaluate"})


def _of_text(family: str, **stages: dict[str, Any]) -> dict[str, Any]:
    data = {"train": "text/train", "val": "text/val", "workers": 0} | ({"classes": 2} if "classes" in stages else {})
    model = {"name": PRESETS[family]} | text_rows.spec(family).model_dump(exclude={"family"})
    made = {"name": "emulated", "data": data, "model": model, "moe": {"group_images": 8}}
    return made | {"stages": stages, "log": {"every_steps": 100}}


@dataclass
class Result:
    """What a run left behind."""

    code: int
    output: str
    counts: dict[int, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Step -> kind -> place -> number."""


def train(
    folder: Path,
    recipe: dict[str, Any],
    *arguments: str,
    ds: dict[str, Any],
    steps: int = 3,
    count: tuple[int, ...] = (),
    ranks: int = 1,
    seconds: float = 570,
    copies_take: float = 0.0,
) -> Result:
    """Train in `folder`, `steps` steps in each stage; count what the chosen steps of the run ask for.

    copies_take: seconds that copies to the host take, see `streams`.
    """
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "ds.json").write_text(json.dumps(ds))
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", str(free_port()), "-m"]
    command = [*launcher, "tests.gpu_emulated", "--count", ",".join(map(str, count)), "--to", "counts.json"]
    command += ["--copies-take", str(copies_take), "--"]
    command += ["--recipe", "recipe.yaml", "--ds_config", "ds.json", "--out", "run"]
    # What a compiled block asks of a device cannot be counted by its lines.
    command += ["--set", f"train.max_steps={steps}", "--set", "train.compile=off", *arguments]
    return finish(command, folder, seconds)


def finish(command: list[str], folder: Path, seconds: float) -> Result:
    """Run a command that may write counts.json, and end it with all that it started."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    counted = folder / "counts.json"
    counts = json.loads(counted.read_text()) if counted.exists() else {}
    return Result(process.returncode, output, {int(step): kinds for step, kinds in counts.items()})


def links_to(data: Path, folder: Path) -> Path:
    """Make `folder` with the digits of `data`, which are made once for all runs."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "digits").exists():
        (folder / "digits").symlink_to(data)
    return folder
