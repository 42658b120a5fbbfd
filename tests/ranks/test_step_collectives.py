"""What the scaling model says that a step sends, against what real ranks send: every collective, every byte."""

from collections import Counter

import pytest
import torch

from benchmarks.collectives import Counted
from sparse_mlp_ds.config.batch import BatchPlan
from sparse_mlp_ds.config.deepspeed_json import DeepSpeedJson
from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.config.stages import Optimizer
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.train import engine, step_collectives
from tests.helpers import harness, moco, tiny

PRECISIONS = {4: {}, 2: {"bf16": {"enabled": True}}}


def _sums(ranks) -> dict[tuple[str, int], tuple[int, int]]:
    """(calls, bytes) of all ranks by kind and group size; groups of one rank send nothing.

    Of all together: a rank's rows are known beforehand, but not how many come back from its experts.
    """
    number, size = Counter(), Counter()
    for call in (call for calls in ranks for call in calls):
        if call.ranks > 1:
            key = (call.kind, call.ranks)
            number[key] += getattr(call, "calls", 1)
            size[key] += call.bytes
    return {key: (number[key], size[key]) for key in number}


def _supervised(ep, zero, precision):
    spec = tiny.spec().model_copy(update={"drop_path": 0.0, "dropout": 0.0})
    routing = MoE(group_images=4, capacity_factor_s=None, capacity_factor_c=None)
    module = registry.build(spec, tiny.CLASSES, engine.expert_parallel(routing, ep))
    init_weights(module, 1)
    share = BatchPlan.over(process_group.world_size(), tiny.IMAGES, unit=4)
    config = DeepSpeedJson({"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0, **PRECISIONS[precision]})
    built = engine.build(module, Optimizer(base_lr=1.0), share, config)
    built.batch = share
    with Counted() as counted:
        tiny.step(built, 0)
    expected = step_collectives.supervised(spec, tiny.CLASSES, process_group.world_size(), ep, share.micro, precision)
    return counted.calls[:-1], expected  # the last is the test's own: it sums the loss


@pytest.mark.parametrize(
    ("world", "ep", "zero", "precision"),
    [
        (2, {"moe_s": 2, "moe_c": 2}, 2, 4),
        (4, {"moe_s": 4, "moe_c": 4}, 1, 2),
        (4, {"moe_s": 4, "moe_c": 2}, 2, 2),
    ],
)
def test_a_supervised_step_sends_what_was_counted(world, ep, zero, precision):
    measured, expected = zip(*harness.run(world, _supervised, ep, zero, precision), strict=True)
    assert _sums(measured) == _sums(expected)


def _pretraining(precision):
    made, world = moco.recipe("sparse_mlp"), process_group.world_size()
    moe = made.moe.model_copy(update={"capacity_factor_s": None, "capacity_factor_c": None})
    made = made.model_copy(update={"moe": moe, "model": made.model | {"drop_path": 0.0, "dropout": 0.0}})
    method = moco.method(made, world)
    stage = made.stages["pretrain"]
    share = BatchPlan.over(world, moco.BATCH)
    config = DeepSpeedJson({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0, **PRECISIONS[precision]})
    built = engine.build(method.module, stage.optimizer, share, config)
    places = torch.arange(share.micro) + process_group.rank() * share.micro
    with Counted() as counted:
        method.before_step(built, 1)
        for loss, reports in method.losses(built, [moco.images(places)]):
            built.backward(loss + sum(report.balance for report in reports.values()))
            built.step()
    ep = {kind: min(world, 4) for kind in made.spec.experts}
    size = (stage.hidden, stage.dim)
    return counted.calls, step_collectives.pretraining(made.spec, *size, world, ep, share.micro, precision)


@pytest.mark.parametrize(("world", "precision"), [(2, 4), (4, 2)])
def test_a_pretraining_step_sends_what_was_counted(world, precision):
    measured, expected = zip(*harness.run(world, _pretraining, precision), strict=True)
    assert _sums(measured) == _sums(expected)
