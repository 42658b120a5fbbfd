"""Distillation in whole runs: the same on any number of ranks, continued from a checkpoint, by the teacher it had."""

import json
from types import SimpleNamespace

import pytest
import torch

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.data.config import Pixels
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.hub.config import ModelConfig, Origin
from sparse_mlp_ds.models.layers import init_weights
from tests.helpers import harness, tiny

RECIPE = """
name: distilled
data: {{embedded: digits, train: {0}/digits/train, val: {0}/digits/val, classes: 10, workers: 0}}
model: {{name: vit_s16, image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2, channel_hidden: 32,
  positions: learned, distillation_token: true, drop_path: 0.2}}
train: {{max_steps: 4}}
stages:
  supervised:
    kind: supervised
    epochs: 2
    batch_size: 48
    ema: 0.5
    mix: {{mixup: 0.2}}
    distill: {{teacher: {0}/teacher, type: soft, alpha: 0.7, temperature: 2.0}}
    optimizer: {{name: sgd, base_lr: 2.0, weight_decay: 0.01}}
    view: {{flip: 0.0}}
  evaluate: {{kind: evaluate}}
"""


def make_teacher(folder, seed=0):
    """Export a Sparse-MLP whose logits are far from even, and which normalises images in a way of its own."""
    config = ModelConfig(
        name="sparse_mlp_digits",
        spec=model_spec({"name": "sparse_mlp_digits", "dense_blocks": 1}),
        classes=tuple("0123456789"),
        data=Pixels(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
        origin=Origin(version="test", weights="online"),
    )
    teacher = SparseVisionModel(config)
    init_weights(teacher.backbone, seed)
    torch.nn.init.normal_(teacher.backbone.head.weight, std=3, generator=torch.Generator().manual_seed(seed))
    teacher.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled")
    make_teacher(folder / "teacher")
    (folder / "recipe.yaml").write_text(RECIPE.format(folder))
    for zero in (0, 1, 2):
        ds = {"zero_optimization": {"stage": zero}, "gradient_clipping": 1.0}
        (folder / f"ds_{zero}.json").write_text(json.dumps(ds))
    return folder


def train(recipe, out, zero, overrides=()):
    from sparse_mlp_ds.distributed import process_group
    from sparse_mlp_ds.train import job, loop

    ds = recipe.parent / f"ds_{zero}.json"
    resolved = job.resolve(str(recipe), str(ds), list(overrides), str(out), "auto", process_group.world_size())
    loop.run(resolved, SimpleNamespace(at=lambda *_, **__: None))


def last(out, step=4):
    return tiny.tensors(out / f"checkpoints/step_{step}")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    harness.run(1, train, folder / "recipe.yaml", folder / "one", 0)
    return last(folder / "one")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_both_heads_learn_and_the_teacher_stays_outside(uninterrupted):
    trained = {name.removeprefix("param/backbone.") for name in uninterrupted if name.startswith("param/")}
    assert {"distillation_token", "positions", "head.weight", "head_dist.weight"} <= trained
    assert not any("teacher" in name or "experts" in name for name in uninterrupted)
    heads = [uninterrupted[f"param/backbone.{name}.weight"] for name in ("head", "head_dist")]
    assert all(head.any() for head in heads) and not torch.allclose(*heads)


@pytest.mark.parametrize(("world", "zero"), [(2, 1), (3, 2)])
def test_one_run_is_the_same_on_more_ranks(folder, uninterrupted, world, zero):
    """Three ranks have 16 images each of 48."""
    harness.run(world, train, folder / "recipe.yaml", folder / f"world_{world}", zero)
    assert_same(last(folder / f"world_{world}"), uninterrupted)


def test_it_goes_on_from_a_checkpoint_with_the_teacher_it_began_with(folder, uninterrupted):
    out = folder / "stopped"
    harness.run(2, train, folder / "recipe.yaml", out, 2, ["train.max_steps=2"])
    make_teacher(folder / "teacher", seed=1)
    with pytest.raises(AssertionError, match="the teacher's weights are not those that it began with; bring them back"):
        harness.run(1, train, folder / "recipe.yaml", out, 0)
    make_teacher(folder / "teacher")
    harness.run(1, train, folder / "recipe.yaml", out, 0)
    assert_same(last(out), uninterrupted)


def test_the_export_answers_with_the_mean_of_both_heads(folder, uninterrupted):
    read = SparseVisionModel.from_pretrained(folder / "one")  # the average
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        tokens, _ = read.backbone.forward_tokens(images)
        w = {name.removeprefix("momentum/backbone."): t for name, t in uninterrupted.items() if "momentum/" in name}
        heads = [
            tokens[:, n] @ w[f"{head}.weight"].T + w[f"{head}.bias"] for n, head in enumerate(("head", "head_dist"))
        ]
        torch.testing.assert_close(read(images), (heads[0] + heads[1]) / 2)
