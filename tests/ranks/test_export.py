"""What was trained on ranks with their own experts answers alike, bit by bit, on one process that holds them all."""

from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints import writer
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.hub.load import load_model
from sparse_mlp_ds.hub.save import write_export
from sparse_mlp_ds.train import engine_state
from sparse_mlp_ds.weights.load import load_into
from tests.helpers import harness, tiny

MODEL = {"sparse_mlp": "sparse_mlp_digits", "vmoe": "vmoe_s32_last2", "widenet": "widenet_b16"}
"""Whose spec a recipe changes into the tiny one."""


def _train(ep_size: int, zero: int, family: str, folder: str) -> torch.Tensor | None:
    """Train two steps, save, and return rank 0's logits. The others give no images: experts meet its rows alone."""
    torch.set_num_threads(1)
    built = tiny.build_engine(ep_size, zero, family=family)
    for number in range(2):
        tiny.step(built, number)
    recipe = {
        "name": "tiny",
        "model": {"name": MODEL[family]} | tiny.spec(family=family).model_dump(),
        "moe": {"group_images": 4, "capacity_factor_s": 1.0, "capacity_factor_c": 0.75},
        "data": {},
        "stages": {"finetune": {"kind": "finetune"}},
    }
    progress = {"stage": "finetune", "step": 2, "stage_step": 2, "hands_over_average": False}
    pieces = [
        engine_state.Piece(one.name.replace("/", "/backbone.", 1), one.shape, one.start, one.values)
        for one in engine_state.pieces(built, None)
    ]
    writer.save(Path(folder), 2, pieces, {"progress": progress, "recipe": recipe, "classes": list("abcde")})
    images = tiny.batch()[0]
    with torch.no_grad():
        mine = images if torch.distributed.get_rank() == 0 else images[:0]
        logits = built.module(mine)[0]
    return logits if torch.distributed.get_rank() == 0 else None


def _run_exported(folder: str) -> tuple[torch.Tensor, list[int]]:
    torch.set_num_threads(1)
    model = SparseVisionModel.from_pretrained(folder)
    held = [len(layer.experts) for layer in model.modules() if hasattr(layer, "router")]
    with torch.no_grad():
        return model(tiny.batch()[0]), held


@pytest.mark.parametrize(
    ("world", "ep_size", "zero", "family"),
    [(2, 2, 1, "sparse_mlp"), (4, 4, 2, "sparse_mlp"), (4, 2, 2, "vmoe"), (2, 2, 0, "widenet")],
)
def test_an_exported_model_is_the_trained_one(tmp_path, world, ep_size, zero, family):
    expected = harness.run(world, _train, ep_size, zero, family, str(tmp_path))[0]
    assert expected.shape == (tiny.IMAGES, tiny.CLASSES)
    opened = load_model(tmp_path / "step_2")
    out = write_export(tmp_path / "out", opened.config, opened.weights)
    for folder in (out, tmp_path / "step_2"):
        logits, held = harness.run(1, _run_exported, str(folder))[0]
        assert torch.equal(logits, expected)
        assert held and set(held) == {4}


def _start_from(path: str, ep_size: int) -> dict[str, torch.Tensor]:
    """Start a fresh model from a checkpoint's folder, as `init_from` does."""
    model = tiny.model(ep_size)
    assert load_into(model, tiny.spec(), path).exact
    return tiny.gather(dict(model.named_parameters()))


def test_a_checkpoint_starts_models_whose_experts_are_spread_otherwise(tmp_path):
    harness.run(2, _train, 2, 2, "sparse_mlp", str(tmp_path))
    expected = load_model(tmp_path / "step_2").weights
    for found in harness.run(4, _start_from, str(tmp_path / "step_2"), 4):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
