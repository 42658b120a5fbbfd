"""Writes a recipe for one's own images: what can be measured is measured, the rest is a common start."""

import re
import tempfile
from pathlib import Path
from string import Template

import yaml

from sparse_mlp_ds import files
from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import sources, statistics
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import UserError, did_you_mean
from sparse_mlp_ds.models.presets import IMAGE_PRESETS
from sparse_mlp_ds.train import job, memory

IMAGES = 1000
"""Images whose channels are measured."""
LARGEST_BATCH = 512
STEPS_PER_EPOCH = 20
"""An epoch has at least so many steps, unless that takes batches of fewer than SMALLEST_BATCH images."""
SMALLEST_BATCH = 16
GROUP = 8
"""Images that are routed together, of which a batch holds a multiple."""

_HEAD = Template("""\
# $model on $data: $train_images images for training, $val_images held out, $classes classes.
#
#   deepspeed --num_gpus 1 --module sparse_mlp_ds.train --recipe $out --ds_config moe
#
# Mean and standard deviation were measured on $measured training images. Learning rate, length and augmentation are a
# common start, not tuned for these images.
name: $name

data:
  train: $train
  val: $val
  classes: $classes
  crop_fraction: $crop
  mean: $mean
  std: $std

model:
  name: $model

stages:
""")
_PRETRAIN = Template("""\
  pretrain:
    kind: pretrain
    epochs: 100
    batch_size: $batch
    optimizer: {name: adamw, base_lr: 5.0e-4, weight_decay: 0.1, exempt_vectors: false, warmup_epochs: 10}
    hidden: 1024
    dim: 256
    knn_every_epochs: 10
    views:
      - &view {crop_scale: [0.2, 1.0], jitter: {p: 0.8}, grayscale: 0.2, blur: {p: 0.5}}
      - {<<: *view, blur: {p: 0.1}, solarize: 0.2}

""")
_LABELS = Template("""\
  $kind:
    kind: $kind
    epochs: 100
    batch_size: $batch
    optimizer: {name: adamw, base_lr: 5.0e-4, weight_decay: 0.05, warmup_epochs: 5}
    view: {crop_scale: [0.2, 1.0]}

  evaluate:
    kind: evaluate
    batch_size: $batch
""")


def write(data: Path, model: str, out: Path, pretrain: bool) -> list[str]:
    """Write a recipe and return what the user should know of it.

    Args:
        data: folder with the data sets `train` and `val`.
        model: name of a registered model.
        out: the YAML file, which must not exist yet.
        pretrain: whether a stage without labels comes first.

    Raises:
        UserError: an input is bad, or no batch fits into memory.
    """
    if model not in IMAGE_PRESETS:
        raise UserError(f"--model {model}: no such model of images; {did_you_mean(model, IMAGE_PRESETS)}")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists; remove it, or name a different file with --out")
    for folder in (data / "train", data / "val"):
        if not folder.is_dir():
            raise UserError(f"{folder} is not there; make it with `sparse-mlp-ds shards make`, which writes it")
    files.check_writable(out.parent, f"--out {out}")
    train, val = (index_file.load(data / split) for split in ("train", "val"))
    sources.check_images(train)
    measured = statistics.measure(train, IMAGES, IMAGE_PRESETS[model].image_size)
    values = {
        "name": _quoted(re.sub(r"[^A-Za-z0-9._-]", "-", out.stem).lstrip("._-") or "new"),
        "out": out,
        "data": data,
        "model": model,
        "train": _quoted(str(data / "train")),
        "val": _quoted(str(data / "val")),
        "classes": len(train.classes),
        "train_images": len(train),
        "val_images": len(val),
        "measured": measured.images,
        "crop": 0.875 if IMAGE_PRESETS[model].image_size >= 64 else 1.0,
        "mean": [round(value, 3) for value in measured.mean],
        "std": [round(max(value, 1e-3), 3) for value in measured.std],
        "kind": "finetune" if pretrain else "supervised",
    }
    batch = _start(train)
    while True:
        text = _text(values | {"batch": batch}, pretrain)
        need, limit = _memory(text)
        if need <= (1 - memory.SPARE) * limit:
            break
        if batch == GROUP:
            raise UserError(f"--model {model} does not fit into {limit / 2**30:.1f} GiB; choose a smaller one")
        batch //= 2
    files.replace(out, text)
    return [f"batches of {batch} images need {need / 2**30:.1f} of {limit / 2**30:.1f} GiB, as estimated"]


def _start(train: Index) -> int:
    """Return the largest batch to try: a power of two with which an epoch has enough steps."""
    batch = LARGEST_BATCH
    while batch > SMALLEST_BATCH and batch * STEPS_PER_EPOCH > len(train):
        batch //= 2
    while batch > GROUP and batch > len(train):
        batch //= 2
    return batch


def _text(values: dict[str, object], pretrain: bool) -> str:
    parts = (_HEAD, _PRETRAIN, _LABELS) if pretrain else (_HEAD, _LABELS)
    return "".join(part.substitute(values) for part in parts)


def _memory(text: str) -> tuple[int, int]:
    """Return the bytes that a recipe needs on one rank, as estimated, and those that a rank here has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.yaml")
        path.write_text(text, encoding="utf-8")
        planned = job.resolve(str(path), "moe", [], None, "never", world=1)
    return max(stage.peak for stage in memory.estimate(planned).values()), process_group.device_memory()


def _quoted(text: str) -> str:
    """Return a text as YAML, in quotes where it needs them."""
    return yaml.safe_dump(text, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
