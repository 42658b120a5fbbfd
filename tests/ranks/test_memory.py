"""The memory estimate against the bytes of live tensors in real training steps through the engine."""

import functools
import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.data.index import Index
from sparse_mlp_ds.data.loader import Batch
from sparse_mlp_ds.data.masking import mask
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.train import engine, memory
from sparse_mlp_ds.train.evaluate_text import token_losses
from sparse_mlp_ds.train.job import Job
from sparse_mlp_ds.train.stage_methods import METHODS
from tests.helpers import harness
from tests.helpers.text_rows import text_format

CLASSES = 10


class Alive(TorchDispatchMode):
    """Sums up the storages of all tensors that operations take or make, from when they are seen until they are freed.

    Those made before it begins are found by the garbage collector.
    """

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.peak = set(), 0, 0
        for found in gc.get_objects():
            if isinstance(found, torch.Tensor) and found.device.type == "cpu":
                self.see(found)

    def see(self, tensor):
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number not in self.seen:
            self.seen.add(number)
            weakref.finalize(storage, self.forget, number, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def forget(self, number, size):
        self.seen.remove(number)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, result)):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        return result


def a_job(recipe, ds: dict, batch: BatchPlan, ep_size: int) -> Job:
    """A job of one stage, without data."""
    (name,) = recipe.stages
    made = Job(
        recipe=recipe,
        ds_config=DeepSpeedJson({"gradient_clipping": 1.0} | ds),
        out=None,
        resume="never",
        world=process_group.world_size(),
        ep_sizes=dict.fromkeys(recipe.spec.experts, ep_size),
        batches={name: batch},
        train=[Index("rows", [], [], text=text_format(length=LENGTH, vocabulary=VOCABULARY))] if recipe.is_text else [],
        val=None,
        classes=[],
        remarks=[],
        trained_on={name: []},
    )
    object.__setattr__(made, "order", lambda _: SimpleNamespace(steps_per_epoch=10))
    return made


def _measured(recipe, ds, images: int, accumulation: int, ep_size: int):
    """Return the estimate and the most live bytes in two steps of training, and in evaluation."""
    world = process_group.world_size()
    (name,) = recipe.stages
    batch = BatchPlan.over(world, images, accumulation, recipe.moe.group_images)
    job = a_job(recipe, ds, batch, ep_size)
    estimated = memory.estimate(job)[name]
    gc.collect()
    alive = Alive()
    before = alive.now
    with alive:
        stage = recipe.stages[name]
        method = METHODS[type(stage)](job, name)
        method.begin()
        built = engine.build(method.module, stage.optimizer, batch, job.ds_config, method.rate_scale)
        gc.collect()
        alive.peak = 0  # nothing of what building took
        for step in range(2):
            batches = [_batch(recipe, len(stage.crops), batch.micro, step) for _ in range(accumulation)]
            engine.set_learning_rate(built, 1e-3)
            method.before_step(built, step)
            for loss, reports in method.losses(built, batches):
                built.backward(loss + sum(report.balance for report in reports.values()))
                built.step()
            method.after_step(built, step + 1)
        del batches, loss, reports
        training, alive.peak = alive.peak, 0
        net = (method.companion if method.hands_over_companion else method.module).backbone
        for router in (module for module in net.modules() if isinstance(module, Router)):
            router.forward = functools.partial(_evenly, router)
        with torch.no_grad():
            _measure(method, net, recipe, job.evaluation_batch(name) // world)
    return estimated, training - before, alive.peak - before


def _measure(method, net, recipe, samples: int) -> None:
    """Do what an evaluation does with one batch."""
    if not recipe.is_text:
        net.forward_features(torch.randn(samples, *recipe.spec.input_shape))
        return
    batch = _batch(recipe, 0, samples, 0)
    masked = mask(batch.inputs, batch.numbers, method.job.text)
    token_losses(method.module(masked.inputs, masked.places)[0].flatten(0, 1), masked.targets.flatten())


def _evenly(router: Router, x, keys):
    """Choose each expert equally often, as the estimate assumes; an untrained router prefers some experts."""
    choices = Router.forward(router, x, keys)
    item, choice = (torch.arange(n) for n in choices.expert.shape)
    return replace(choices, expert=(item[:, None] + choice) % len(router.weight))


def _batch(recipe, views: int, micro: int, step: int) -> Batch:
    shape = recipe.spec.input_shape
    tokens = torch.arange(micro * LENGTH).view(micro, LENGTH) % VOCABULARY
    images = None if recipe.is_text else torch.randint(0, 256, (micro, views, *shape), dtype=torch.uint8)
    fields = {
        "inputs": tokens if recipe.is_text else images,
        "labels": torch.arange(micro) % CLASSES,
        "numbers": torch.arange(micro) + step * micro,
    }
    return Batch(**fields, **{name: () for name in Batch.__dataclass_fields__ if name not in fields})


def recipe(*settings: str, base: str = "sparse_b_moco_adamw", stage: str = "pretrain"):
    """A shipped recipe's one stage, at a size that a test can run, with views that take no time."""
    plain = load_recipe(base, list(settings))
    only = plain.stages[stage]
    if plain.is_text:
        return plain.model_copy(update={"stages": {stage: only}})
    crops = {"views": (type(only.views[0])(),) * 2} if stage == "pretrain" else {"view": type(only.view)()}
    data = plain.data.model_copy(update={"classes": CLASSES})
    return plain.model_copy(update={"stages": {stage: only.model_copy(update=crops)}, "data": data})


BUCKET = {"reduce_bucket_size": 1_000_000}
OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
TWO_BLOCKS = ["model.dense_blocks=1", "model.sparse_blocks=1", "moe.group_images=4"]
HEADS = ["stages.pretrain.hidden=256", "stages.pretrain.dim=64"]
MOCO = recipe("model.image_size=96", *TWO_BLOCKS, *HEADS)
MIXER = recipe("model.image_size=96", "model.dense_blocks=2", base="mixer_b_supervised", stage="supervised")
MLM = recipe("moe.group_images=4", base="speeches", stage="mlm")
LENGTH, VOCABULARY = 128, 4096
LARGE = recipe("model.dense_blocks=2", "model.sparse_blocks=1", "moe.group_images=4", *HEADS)


def zero(stage: int, **more):
    return {"zero_optimization": {"stage": stage} | BUCKET | more}


# ranks, recipe, DeepSpeed JSON, images per step, micro-batches, ep_size
CASES = {
    "moco, experts on two ranks, ZeRO-2": (2, MOCO, zero(2), 16, 1, 2),
    "moco over the step, ZeRO-1": (1, MOCO, zero(1), 16, 2, 1),
    "supervised, no ZeRO": (1, MIXER, {}, 16, 1, 1),
    "supervised, ZeRO-2 with offload": (1, MIXER, zero(2, **OFFLOAD), 16, 1, 1),
    "masked modelling, experts on two ranks, ZeRO-2": (2, MLM, zero(2), 32, 1, 2),
    "supervised, ZeRO-3": (2, MIXER, zero(3), 16, 1, 1),
}


def _hold(world, made, ds, images, accumulation, ep_size, least):
    results = harness.run(world, _measured, made, ds, images, accumulation, ep_size, seconds=900)
    for estimated, training, measuring in results:
        assert training > least, "too small to say anything"
        assert estimated.training == pytest.approx(training, rel=0.15), estimated.text()
        # What DeepSpeed keeps of a step, its buckets, weighs only where an evaluation takes little itself.
        assert estimated.measuring == pytest.approx(measuring, rel=0.15, abs=2**23), estimated.text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world, made, ds, images, accumulation, ep_size", CASES.values(), ids=CASES.keys())
def test_the_estimate_is_what_steps_take(world, made, ds, images, accumulation, ep_size):
    _hold(world, made, ds, images, accumulation, ep_size, 2**25)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_estimate_of_a_large_step_is_what_it_takes():
    """In float32: a processor without bf16 arithmetic takes more than a quarter of an hour for the same in bf16."""
    _hold(1, LARGE, zero(2), 16, 1, 1, 2**30)
