"""Shipped recipes of text hold the numbers of gMLP's paper, fit onto its machines, and say what they cost."""

import re
import shlex

import numpy as np
import pytest

from sparse_mlp_ds.config.loading import RECIPES, load_recipe
from sparse_mlp_ds.config.stages import Evaluate, FinetuneSpan, FinetuneText, MaskedLM
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.data.text_format import TextFormat
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.sweep.plan import load, runs
from sparse_mlp_ds.train import flags, job, memory
from tests.unit.test_shipped_recipes import ROOT, head

ABLATION = ("c4_128", 125_000, 2048, 7e-4, 10_000)  # data, steps, batch, peak rate, steps of warm-up: 4.1 and 4.2
FULL = ("c4_512", 1_000_000, 256, 1e-4, 10_000)  # 4.3 and 4.4
MASKED = {
    "gmlp_mlm_36": ("gmlp_text_36", *ABLATION),
    "bert_mlm_12": ("bert_12", *ABLATION),
    "gmlp_mlm_b": ("gmlp_text_b", *FULL),
    "gmlp_mlm_l": ("gmlp_text_l", *FULL),
    "gmlp_mlm_xl": ("gmlp_text_xl", *FULL),
    "amlp_mlm_b": ("amlp_text_b", *FULL),
    "amlp_mlm_l": ("amlp_text_l", *FULL),
    "bert_mlm_b": ("bert_b", *FULL),
    "bert_mlm_l": ("bert_l", *FULL),
}
FINETUNED = ("gmlp_finetune_sst2", "gmlp_finetune_mnli", "gmlp_finetune_squad1", "gmlp_finetune_squad2")
ROWS = {"sst2": 67_349, "mnli": 392_702, "squad1": 88_524, "squad2": 131_944}
"""Sentences, pairs, and about as many windows as the training sets have."""
ALL = (*MASKED, *FINETUNED)


def index(rows, recipe):
    """An index of as many rows as a data set has, all of label 0, of the model's length and vocabulary."""
    column, spec = np.zeros(rows, dtype=np.int64), recipe.spec
    one = Shard("a.tar", "a.tar", 1, "0" * 64, np.zeros(rows, dtype="S1"), column, column, column)
    special = {name: number for number, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    spans = any(isinstance(stage, FinetuneSpan) for stage in recipe.stages.values())
    text = TextFormat(spec.length, spec.vocabulary, "0" * 64, special, "spans" if spans else "texts")
    return Index("data", [str(n) for n in range(recipe.data.class_count)], [one], text=text)


def resolve(name, monkeypatch, world=8, gpu=None):
    recipe = load_recipe(name)
    data = recipe.data.train[0].path.split("/")[1]
    monkeypatch.setattr(job.sources, "open_sources", lambda *_: [index(ROWS.get(data, 1_000_000), recipe)])
    monkeypatch.setattr(job.class_checks, "check_start", lambda *stage: [])  # the weights are nowhere
    monkeypatch.setattr("sparse_mlp_ds.train.text_checks.load_questions", lambda *_: [])
    args = flags.parse(shlex.split(re.search(r"train\.py (.*)", head(name))[1]))
    changes = args.ds if world == 8 else []  # of micro-batches, for the 8 GPUs of the command
    json = str(ROOT / args.ds_config)
    return job.resolve(name, json, ["data.workers=0"], None, "never", world, gpu=gpu, ds_changes=changes)


@pytest.mark.parametrize("name", MASKED)
def test_masked_language_models_are_trained_as_the_paper_says(name):
    recipe, (model, data, steps, batch, peak, warmup) = load_recipe(name), MASKED[name]
    assert (recipe.model["name"], recipe.data.train[0].path) == (model, f"data/{data}/train")
    assert recipe.spec.length == int(data.removeprefix("c4_")) and recipe.spec.vocabulary == 32_000
    stage = recipe.stages["mlm"]
    assert isinstance(stage, MaskedLM) and isinstance(recipe.stages["evaluate"], Evaluate)
    assert (stage.steps, stage.batch_size, stage.mask_share) == (steps, batch, 0.15)
    own = stage.optimizer
    assert own.peak_lr(batch) == pytest.approx(peak) and own.warmup(10**9) == warmup
    assert (own.name, own.decay, own.final_lr, own.betas) == ("adamw", "linear", 0, (0.9, 0.999))
    assert (own.weight_decay, own.eps) == (0.01, 1e-6)


@pytest.mark.parametrize("name", FINETUNED)
def test_fine_tuning_is_the_papers(name):
    stage = load_recipe(name).stages["finetune"]
    own, squad = stage.optimizer, "squad" in name
    assert (stage.batch_size, own.decay, own.weight_decay, own.eps) == (32, "linear", 0.01, 1e-6)
    assert own.peak_lr(32) == pytest.approx(5e-5 if squad else 2e-5)
    if squad:
        assert isinstance(stage, FinetuneSpan) and (stage.steps, own.warmup_steps) == (8_000, 1_000)
        assert load_recipe(name).spec.length == 512
    else:
        assert isinstance(stage, FinetuneText) and (stage.epochs, own.warmup_epochs) == (5, 0.5)
        assert load_recipe(name).spec.length == 128


@pytest.mark.parametrize("sweep", ["text_sst2", "text_mnli"])
def test_the_grid_is_the_papers(sweep):
    found = [(run.recipe.stages["finetune"], run.recipe.train.seed) for run in runs(load(sweep))]
    grid = {(s.batch_size, round(s.optimizer.peak_lr(s.batch_size), 9), seed) for s, seed in found}
    assert grid == {(b, lr, seed) for b in (16, 32) for lr in (1e-5, 2e-5, 3e-5) for seed in range(5)}


def test_the_variants_of_mlm_blocks_activate_as_many_parameters():
    found = [run for run in runs(load("mlm_blocks")) if run.name.endswith("seed-0")]
    sizes = {run.name: cost.cost(run.recipe.spec).params_active for run in found}
    dense = sizes["gmlp_seed-0"]
    assert all(abs(size / dense - 1) < 0.01 for size in sizes.values()), sizes


@pytest.mark.parametrize("world", [8, 64])
@pytest.mark.parametrize("name", ALL)
def test_it_resolves_on_whole_machines_of_8_gpus(name, world, monkeypatch):
    batch = load_recipe(name).stages["mlm" if name in MASKED else "finetune"].batch_size
    if batch < world:
        world = 8
    found = resolve(name, monkeypatch, world)
    (plan,) = found.batches.values()
    assert plan.micro * plan.accumulation * world == batch


@pytest.mark.parametrize("name", ALL)
def test_its_head_names_a_target_and_counts_its_macs(name, monkeypatch):
    """MACs: of one row, times rows, times three; those of masked language models with the output layer."""
    text, recipe = head(name), load_recipe(name)
    assert "Target: the paper reports" in text
    masked = "mlm" in recipe.stages
    stage = next(iter(recipe.stages.values()))
    spec, each = recipe.spec, cost.cost(recipe.spec).macs
    if masked:
        each += round(stage.mask_share * spec.length) * spec.vocabulary * spec.width
    rows = (
        stage.batch_size * stage.steps if stage.steps else stage.epochs * ROWS[recipe.data.train[0].path.split("/")[1]]
    )
    total, printed, count, unit = re.search(r"(\d\.\de\d\d) MACs[^:]*: ([\d.]+) G x ([\d.]+) ([Mk]) ", text).groups()
    assert f"{each / 1e9:.3g}" == printed
    scale = {"M": 1e6, "k": 1e3}[unit]
    assert float(count) == pytest.approx(rows / scale, rel=0.01)
    assert f"{3 * each * rows:.1e}".replace("e+", "e") == total


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_the_command_in_its_head_fits_into_8_gpus_of_80_gb(name, monkeypatch):
    found = resolve(name, monkeypatch, gpu=True)
    stages = memory.estimate(found)
    memory.check(found, stages, 80 * 10**9)
    assert found.ds_config.precision == "bf16"


def test_all_of_them_are_known():
    text = {name for name in RECIPES.names() if load_recipe(name).is_text}
    assert text == {*ALL, "speeches"}
