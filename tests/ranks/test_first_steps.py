"""Every shipped recipe takes its first step, made small: each stage's network, losses and gradients are finite."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_mlp_ds.config.loading import RECIPES, load_recipe
from sparse_mlp_ds.config.recipe import Recipe
from sparse_mlp_ds.config.stages import FinetuneSpan, Pretrain, TrainingStage
from sparse_mlp_ds.data import loader, sources
from sparse_mlp_ds.data.index import join
from sparse_mlp_ds.data.order import micro_batches
from sparse_mlp_ds.models.layers import Dropout
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec, VitSpec
from sparse_mlp_ds.models.text_spec import GmlpTextSpec
from sparse_mlp_ds.train import job
from sparse_mlp_ds.train.stage_methods import METHODS
from tests.helpers import harness, text_rows

ROOT = Path(__file__).parents[2]
BATCH = 8


def small(recipe: Recipe, data: Path) -> list[str]:
    """Overrides that keep what a recipe is, its stages, losses, views and routing, and make it tiny."""
    spec = recipe.spec
    model = {"width": 16, "dropout": spec.dropout}
    if recipe.is_text:
        model |= {"length": text_rows.LENGTH, "vocabulary": text_rows.VOCABULARY}
    else:
        model |= {"image_size": 16, "patch_size": 4}
    if isinstance(spec, MixerSpec):
        model |= {
            "token_hidden": 8,
            "channel_hidden": 16,
            "dense_blocks": 1,
            "sparse_blocks": min(spec.sparse_blocks, 1),
        }
        model |= {"sparse_tokens": 20, "sparse_width": 12} if spec.sparse_blocks else {}
    else:
        model |= {"depth": 2}
        model |= {"heads": 2} if hasattr(spec, "heads") else {}
        model |= {"hidden": 32} if isinstance(spec, GmlpSpec | GmlpTextSpec) else {}
        model |= {"channel_hidden": 16} if hasattr(spec, "channel_hidden") else {}
        model |= {"moe_placement": "every2"} if isinstance(spec, VitSpec) else {}
    for kind in spec.experts:
        model |= {f"{kind}.hidden": 8}
    settings = {f"model.{key}": value for key, value in model.items()}
    kind = "digits"
    if recipe.is_text:
        kind = "spans" if any(isinstance(stage, FinetuneSpan) for stage in recipe.stages.values()) else "texts"
    settings |= {"data.train": f"{data}/{kind}/train", "data.val": f"{data}/{kind}/val", "data.workers": 0}
    settings |= {"data.embedded": "null" if recipe.is_text else "digits"}
    if recipe.data.classes or not recipe.is_text:
        settings |= {"data.classes": len(text_rows.CLASSES) if recipe.is_text else 10}
    for name, stage in recipe.stages.items():
        if isinstance(stage, TrainingStage):
            settings |= {f"stages.{name}.batch_size": BATCH}
        if isinstance(stage, Pretrain):
            settings |= {f"stages.{name}.hidden": 16, f"stages.{name}.dim": 8}
    return [f"{key}={value}" for key, value in settings.items()]


def make_texts(data: Path) -> None:
    """Write rows with classes, and rows with answers and the one question that they belong to."""
    for kind, labels in (("texts", None), ("spans", np.full(2 * BATCH, 2 * text_rows.LENGTH + 3))):
        for number, part in enumerate(("train", "val")):
            rows = text_rows.rows(2 * BATCH, number)
            text_rows.write(data / kind / part, rows, labels, text_rows.text_format(kind))
        job.text_checks.load_questions = lambda index: []  # which are read after training alone


def first_steps(data: Path, names: list[str]) -> dict[str, dict]:
    """For each recipe and stage: the loss, its own and the balance one, and names of tensors without a finite gradient.

    The module itself stands in for the engine, which would add DeepSpeed's wrapping and no arithmetic.
    """
    torch.set_num_threads(1)  # the tensors are tiny
    make_texts(data)
    job.class_checks.check_start = lambda *stage: []  # the weights of `init_from` are nowhere
    found = {}
    for name in names:
        run = job.resolve(name, str(ROOT / "ds_configs/moe.json"), small(load_recipe(name), data), None, "never", 1)
        recipe = run.recipe
        for stage_name in run.batches:
            stage = recipe.stages[stage_name]
            method = METHODS[type(stage)](run, stage_name)
            method.begin()
            order = run.order(stage_name)
            size, classes = getattr(recipe.spec, "image_size", None), recipe.data.classes
            samples = loader.ShardDataset(
                join(run.train), size, classes, method.views, 0, order, cache=sources.cache(recipe.data)
            )
            slots = micro_batches(order, range(1), range(BATCH))
            ((loss, reports),) = method.losses(method.module, [next(loader.load(samples, slots, 0))])
            balance = sum((report.balance for report in reports.values()), torch.zeros(()))
            (loss + balance).backward()
            trained = [(n, p) for n, p in method.module.named_parameters() if p.requires_grad]
            bad = [n for n, p in trained if p.grad is None or not p.grad.isfinite().all()]
            rates = {m.rate for n, m in method.module.named_modules() if isinstance(m, Dropout) and ".experts." in n}
            found[f"{name} {stage_name}"] = {"loss": loss.item(), "balance": balance.item(), "bad": bad, "rates": rates}
    return found


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return harness.run(1, first_steps, tmp_path_factory.mktemp("data"), RECIPES.names(), seconds=240)[0]


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_stage_of_a_recipe_takes_its_first_step(name, steps):
    recipe = load_recipe(name)
    own = {stage.removeprefix(f"{name} "): step for stage, step in steps.items() if stage.split()[0] == name}
    assert own.keys() == {n for n, stage in recipe.stages.items() if isinstance(stage, TrainingStage)}
    for stage, step in own.items():
        assert step["bad"] == [] and 0 < step["loss"] < 100
        assert (step["balance"] > 0) == bool(recipe.spec.experts and stage != "probe")


def test_a_sigmoid_per_class_starts_at_its_prior(steps):
    """With all weights of the head 0, each of the 10 classes is as likely as 1 in 11: -log(1/11) - 9 log(10/11)."""
    for name in ("mixer_b_supervised", "vmoe_s32_supervised"):
        assert steps[f"{name} supervised"]["loss"] == pytest.approx(3.2557, abs=1e-3)


def test_dropout_reaches_experts_that_are_spread_over_ranks(steps):
    assert steps["vmoe_s32_supervised supervised"]["rates"] == {0.2}
    assert steps["widenet_b_supervised supervised"]["rates"] == {0.1}
