"""Under bf16 the router stays in float32: its weights, its arithmetic, and what it chooses; fp16 scales its loss."""

from pathlib import Path

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from sparse_mlp_ds.checkpoints import manifest, writer
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.moe.router import Router
from sparse_mlp_ds.train import engine_state
from tests.helpers import harness, tiny

BF16 = {"bf16": {"enabled": True}}


def _routers(zero: int):
    built = tiny.build_engine(2, zero, **BF16)
    losses = [tiny.step(built, number)[0] for number in range(4)]
    found = []
    for module in built.module.modules():
        if isinstance(module, Router):
            reference = Router(module.weight.shape[1], module.weight.shape[0], module.top_k)
            reference.weight.data = module.weight.data.float()
            x = torch.randn(4, 6, module.weight.shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
            found.append((module.weight.data, module(x, None), reference(x.float(), None)))
    others = {p.dtype for n, p in built.module.named_parameters() if "router" not in n}
    return losses, found, others


@pytest.mark.parametrize("zero", [1, 2])
def test_the_router_is_float32_in_a_bf16_engine(zero):
    for losses, routers, others in harness.run(2, _routers, zero):
        assert others == {torch.bfloat16}
        assert losses[-1] < losses[0]
        assert len(routers) == 2
        for weight, choices, reference in routers:
            assert weight.dtype == torch.float32
            assert not torch.equal(weight, weight.bfloat16().float()), "was rounded to bf16 on the way"
            assert choices.logits.dtype == choices.weight.dtype == torch.float32
            assert torch.equal(choices.expert, reference.expert)
            torch.testing.assert_close(choices.weight, reference.weight, rtol=0, atol=0)


FP16 = {"fp16": {"enabled": True, "initial_scale_power": 30, "loss_scale_window": 2, "hysteresis": 1}}


def _fp16(zero: int, folder: str, start: str | None, first: int, last: int):
    """Steps in half precision; DeepSpeed's CPU accelerator denies that torch's kernels have it."""
    get_accelerator().is_fp16_supported = lambda: True
    built = tiny.build_engine(2, zero, **FP16)
    if start:
        found = manifest.open_checkpoint(Path(start))
        updates = found.progress["stage_step"] - found.progress["skipped"]
        engine_state.restore(built, None, Reader(found), updates)
        engine_state.restore_loss_scale(built, found.progress["loss_scale"])
    scales, losses = [], []
    for number in range(first, last):
        losses.append(tiny.step(built, number)[0])
        scales.append(built.optimizer.loss_scale)
    progress = {"stage_step": last, "loss_scale": engine_state.loss_scale(built), "skipped": built.skipped_steps}
    about = {"progress": progress, "recipe": {}}
    writer.save(Path(folder), last, engine_state.pieces(built, None), about)
    return losses, scales, built.skipped_steps


@pytest.mark.parametrize("zero", [1, 2])
def test_fp16_finds_its_loss_scale_and_goes_on_with_it(zero, tmp_path):
    (whole, scales, skipped), other = harness.run(2, _fp16, zero, str(tmp_path / "whole"), None, 0, 24)
    assert (scales, skipped) == (other[1], other[2]), "ranks skip alike"
    assert 2 < skipped < 20 and scales[0] > scales[-1], "the first scale was to overflow"
    assert whole[-1] < whole[0]
    first, before, _ = harness.run(2, _fp16, zero, str(tmp_path / "parts"), None, 0, 22)[0]
    last, after, _ = harness.run(2, _fp16, zero, str(tmp_path / "parts"), str(tmp_path / "parts/step_22"), 22, 24)[0]
    assert before + after == scales and first + last == whole
    expected, found = tiny.tensors(tmp_path / "whole/step_24"), tiny.tensors(tmp_path / "parts/step_24")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
