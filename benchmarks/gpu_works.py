"""Does it work on a GPU: all stages of a small recipe, losses like the CPU's, an export, the same bits twice."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import torch
import yaml
from torch import Tensor

from benchmarks.gpu_steps import inputs, model_for, passes, size_of
from benchmarks.gpu_timing import Settings, device
from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.data import augment
from sparse_mlp_ds.data.config import Blur, Erase, Jitter, RandAugment, View
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.shards import digits

ROOT = Path(__file__).parents[1]
RECIPE = {
    "base": "digits",
    "name": "gpu",
    "stages": {
        "probe": {
            "kind": "probe",
            "epochs": 1,
            "batch_size": 64,
            "optimizer": {"name": "sgd", "base_lr": 0.1, "weight_decay": 0.0},
            "view": {"crop_scale": [0.6, 1.0], "flip": 0.0},
        },
        "supervised": {
            "kind": "supervised",
            "epochs": 10,
            "batch_size": 64,
            "optimizer": {"name": "lamb", "base_lr": 4.0e-3, "weight_decay": 0.05, "warmup_epochs": 1},
            "mix": {"mixup": 0.8, "cutmix": 1.0},
            "drop_path": 0.1,
            "ema": 0.99,
            "view": {"rand_augment": {"ops": 2, "magnitude": 9}, "erase": 0.25, "flip": 0.0},
        },
    },
}
"""All kinds of stages: pretrain, finetune, evaluate of `digits`, then these."""
NEAR = 0.01
"""Losses in float32 may differ by this share from the CPU's."""
JSON = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
Case = tuple[str, Callable[[], dict]]


def cases(settings: Settings) -> Iterator[Case]:
    """All stages, what was trained used elsewhere, and augmentation."""
    yield "augmentation", lambda: _augmentation(16 if settings.toy else 64)
    yield "stages", lambda: _stages(settings)
    yield "export", lambda: _export(settings)


def bit_cases(settings: Settings) -> Iterator[Case]:
    """The same twice: gradients of one batch, a whole run; and an image's logits in different batches."""
    for name in ("sparse_mlp_digits",) if settings.toy else ("sparse_mlp_b16", "mixer_b16", "vit_b16"):
        for precision in ("bf16", "fp32"):
            yield f"{name} {precision} gradients", lambda n=name, p=precision: _gradients(n, p, size_of(settings))
            yield f"{name} {precision} logits", lambda n=name, p=precision: _logits(n, p, size_of(settings))
    if not settings.toy:
        yield "training run", lambda: _runs_twice(settings)


def _augmentation(images: int) -> dict:
    """Compare every operation's result on the device with the CPU's. Shares and differences are in units of 1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 3, 64, 64), dtype=torch.uint8, generator=generator)
    batch = Batch(pixels, torch.zeros(images, dtype=torch.long), torch.arange(images))
    plain = View(flip=0.0)
    views = {
        "flip": View(flip=0.5),
        "jitter": plain.model_copy(update={"jitter": Jitter(p=1.0)}),
        "grayscale": plain.model_copy(update={"grayscale": 0.5}),
        "blur": plain.model_copy(update={"blur": Blur(p=1.0)}),
        "solarize": plain.model_copy(update={"solarize": 0.5}),
        "rand_augment": plain.model_copy(update={"rand_augment": RandAugment()}),
        "erase": plain.model_copy(update={"erase": Erase(p=0.5)}),
    }
    row = {}
    for name, view in views.items():
        (there,), _ = augment.views(batch.to(device()), (view,), 0)
        (here,), _ = augment.views(batch, (view,), 0)
        row[name] = float((there.cpu() - here).abs().max())
    if not max(value for name, value in row.items() if name != "rand_augment") < 0.01:
        raise RuntimeError(f"augmented images differ from the CPU's: {row}")
    return row


def _stages(settings: Settings) -> dict:
    """Run the recipe on the CPU and, in float32 and bf16, on the device: all at once, losses compared step by step."""
    runs = {"fp32": None} if settings.toy else {"cpu": "", "fp32": None, "bf16": None}
    processes = {name: _start(settings, name, visible) for name, visible in runs.items()}
    row: dict = {"losses": {}}
    problems = [problem for name, process in processes.items() if (problem := _end(settings, name, process))]
    for name in runs:
        metrics = settings.folder / name / "metrics.jsonl"
        records = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        losses: dict[str, list[float]] = {}
        for record in records:
            if "loss" in record:
                losses.setdefault(record["stage"], []).append(record["loss"])
        row["losses"][name] = losses
        summary = settings.folder / name / "summary.json"
        row[f"summary_{name}"] = json.loads(summary.read_text()) if summary.exists() else {}
    if "cpu" in runs:
        for name in ("fp32", "bf16"):
            off = _differences(row["losses"]["cpu"], row["losses"][name])
            row |= {f"{name} {stage}": value for stage, value in off.items()}
            if name == "fp32" and not max(off.values(), default=1.0) < NEAR:
                problems.append(f"losses in float32 differ from the CPU's by {off}")
    if problems:
        print(json.dumps(row), file=sys.stderr)
        raise RuntimeError("; ".join(problems))
    return row


def _differences(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, float]:
    """Return by stage the largest relative difference of a step's loss."""
    return {
        stage: max((abs(a - b) / abs(a) for a, b in zip(losses, theirs.get(stage, []), strict=False)), default=1.0)
        for stage, losses in ours.items()
    }


def _start(settings: Settings, name: str, visible: str | None, steps: int = 8) -> subprocess.Popen:
    """Start train.py; its output goes to a file. visible: CUDA_VISIBLE_DEVICES, None as it is."""
    folder = settings.folder
    digits.make(folder / "digits")
    (folder / "gpu.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    low = name.startswith("bf16")
    (folder / f"{name}.json").write_text(json.dumps(JSON | ({"bf16": {"enabled": True}} if low else {})))
    settings_of_run = [f"data.train={folder}/digits/train", f"data.val={folder}/digits/val", "data.workers=0"]
    settings_of_run += [f"train.max_steps={2 if settings.toy else steps}", "log.every_steps=1", "log.tensorboard=false"]
    command = [sys.executable, "train.py", "--recipe", str(folder / "gpu.yaml"), "--out", str(folder / name)]
    command += ["--ds_config", str(folder / f"{name}.json"), *(f"--set={one}" for one in settings_of_run)]
    # Ours has joined a process group of its own, whose variables are not for others.
    mine = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {key: value for key, value in os.environ.items() if key not in mine} | {"PYTHONUNBUFFERED": "1"}
    if visible is not None:
        env["CUDA_VISIBLE_DEVICES"] = visible
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def _end(settings: Settings, name: str, process: subprocess.Popen) -> str:
    """Wait for a run, print the end of what it said, and return what went wrong."""
    try:
        code = process.wait(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    said = (settings.folder / f"{name}.log").read_text().splitlines()
    print("\n".join(f"    {name}: {line}" for line in said[-(12 if code == 0 else 60) :]), flush=True)
    return f"the run {name} ended with exit code {code}" if code else ""


def _export(settings: Settings) -> dict:
    """Export what `stages` trained, and compare its logits on the device with the CPU's."""
    from sparse_mlp_ds.hub import SparseVisionModel

    out = settings.folder / "exported"
    cli.main(["export", str(settings.folder / "fp32"), str(out)])
    model = SparseVisionModel.from_pretrained(str(out))
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here = model(images)
        there = model.to(device())(images.to(device())).cpu()
    off = float((here - there).norm() / here.norm())
    if not off < 1e-3:
        raise RuntimeError(f"logits differ from the CPU's by {off}")
    return {"logits": off}


def _gradients(name: str, precision: str, images: int) -> dict:
    """Take the same pass twice, and say whether loss and gradients have the same bits."""
    model = model_for(name, precision)
    step = passes(name, model, images)
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for _ in range(2):
        loss = step()
        results.append((loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (loss, first), (again, second) = results
    different = [name for name in first if not torch.equal(first[name], second[name])]
    return {"same_loss": bool(torch.equal(loss, again)), "different": len(different), "names": different[:20]}


def _logits(name: str, precision: str, images: int) -> dict:
    """Compare the logits of 8 images alone with those that they get in a whole batch."""
    model = model_for(name, precision).eval()
    pictures, *_ = inputs(name, images)
    with torch.no_grad():
        few, many = model(pictures[:8])[0].float(), model(pictures)[0][:8].float()
    return {"same": bool(torch.equal(few, many)), "difference": float((few - many).norm() / few.norm())}


def _runs_twice(settings: Settings) -> dict:
    """Train twice at once and compare the checkpoints tensor by tensor."""
    names = ("bf16_first", "bf16_second")
    processes = [_start(settings, name, None) for name in names]
    problems = [problem for name, one in zip(names, processes, strict=True) if (problem := _end(settings, name, one))]
    if problems:
        raise RuntimeError("; ".join(problems))
    folders = [str(settings.folder / name) for name in names]
    said, same = io.StringIO(), True
    try:
        with redirect_stdout(said):
            cli.main(["checkpoint", "diff", *folders])
    except SystemExit as left:
        same = not left.code
    print(said.getvalue(), flush=True)
    return {"same": same, "said": said.getvalue()[-3000:]}
