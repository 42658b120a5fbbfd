"""Whole training steps of shipped recipes, as the trainer takes them: augmentation, passes, averages, update."""

import json
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_timing import Settings, device, launches, measured, rate, waits_by_place
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data import augment, loader
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import engine as engines
from sparse_mlp_ds.train.job import Job, resolve
from sparse_mlp_ds.train.loop import METHODS
from sparse_mlp_ds.train.moco import MoCo

STEPS = (("sparse_b_moco_adamw", "pretrain"), ("sparse_b_moco_adamw", "finetune"), ("mixer_b_supervised", "supervised"))
"""Recipe and stage."""
TOYS = (("digits", "pretrain"), ("digits", "finetune"))
Case = tuple[str, Callable[[], dict]]


def cases(settings: Settings) -> Iterator[Case]:
    """One step of each stage in bf16 at ZeRO-2, and its parts."""
    for recipe, stage in TOYS if settings.toy else STEPS:
        yield f"{recipe} {stage}", lambda recipe=recipe, stage=stage: _step(recipe, stage, settings)


def _step(recipe: str, stage: str, settings: Settings) -> dict:
    job = _job(recipe, stage, settings)
    batch_of, section = job.batches[stage], job.recipe.stages[stage]
    method = METHODS[type(section)](job, stage)
    method.begin()
    engine = engines.build(method.module, section.optimizer, batch_of, job.ds_config, method.rate_scale)
    engines.set_learning_rate(engine, 1e-4)
    order, spec = job.order(stage), job.recipe.spec
    dataset = loader.ShardDataset(
        join(job.train), spec.image_size, job.recipe.data.classes, method.views, job.recipe.train.seed, order
    )
    (batch,) = loader.load(dataset, micro_batches(order, range(1), range(batch_of.total)), 0)
    batch, done = batch.to(device()), [0]

    def step() -> None:
        method.before_step(engine, done[0])
        for loss, reports in method.losses(engine, [batch]):
            engine.backward(loss + sum(report.balance for report in reports.values()))
            engine.step()
        done[0] += 1
        method.after_step(engine, done[0])

    row = measured(step, settings)
    row |= rate(row, batch_of.total, _passes(method) * cost.cost(spec).macs, "bf16")
    row |= launches(step, top=30) | {"waits_by_place": waits_by_place(step)}
    row |= {f"{part}_ms": measured(f, settings)["ms"] for part, f in _parts(method, engine, batch).items()}
    engine.destroy()
    return row


def _job(recipe: str, stage: str, settings: Settings) -> Job:
    """Resolve a recipe on the embedded digits, whatever size its model wants them in."""
    folder, images = settings.folder / "digits", 16 if settings.toy else settings.images
    digits.make(folder)
    config = settings.folder / "bf16.json"
    zero = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}
    config.write_text(json.dumps(zero))
    data = [f"data.train={folder}/train", f"data.val={folder}/val", "data.classes=10", "data.workers=0"]
    # Every stage's batch, not this one's alone: a recipe's own would not fit into the few digits.
    names = load_recipe(recipe, data).stages
    batches = [f"stages.{name}.batch_size={images}" for name in names if hasattr(names[name], "batch_size")]
    return resolve(recipe, str(config), [*data, *batches], None, "never", 1)


def _passes(method: object) -> int:
    """Return a step's passes over those of one view forward and backward, of which `rate` knows."""
    # Two views, and a momentum net that runs forward alone: a third of forward and backward.
    return 1 if not isinstance(method, MoCo) else 2 + 2 / 3


def _parts(method: object, engine: object, batch: loader.Batch) -> dict[str, Callable[[], object]]:
    """Return what a step is made of that can be run alone."""
    seed = method.job.recipe.train.seed
    parts = {"augment": lambda: augment.views(batch, method.views, seed)}
    if isinstance(method, MoCo):
        images, _ = method._images(batch)

        def momentum_net(dtype: torch.dtype) -> None:
            with torch.no_grad(), torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32):
                method.companion(images)

        parts |= {
            "momentum_net": lambda: method.encoder(images),
            "momentum_net_fp32": lambda: momentum_net(torch.float32),
            "momentum_net_autocast": lambda: momentum_net(torch.bfloat16),
            "average": lambda: method.before_step(engine, 0),
        }
    return parts
