"""Shipped recipes hold the papers' numbers, divide over whole machines, and are resolved as `train.py --check` does."""

import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sparse_mlp_ds.config.loading import RECIPES, load_recipe
from sparse_mlp_ds.config.stages import Evaluate, Pretrain, TrainingStage
from sparse_mlp_ds.data.index import Index, Shard
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.train import flags, job, memory
from sparse_mlp_ds.train.plan import plan

ROOT = Path(__file__).parents[2]
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "digits": 1_437}
OURS = {"digits", "speeches", "cifar10_tiny", "cifar10_tiny_moco", "sparse_mlp_plus"}  # no paper's

SPARSE_MLP = {  # Sparse-MLP v2, Table 1 and 3.1: 10,000 steps of warm-up
    "pretrain": (4096, 300, "lamb", 1e-3, 10_000, ("cosine", 0), (0.1, False)),
    "finetune": (1024, 150, "adamw", 1e-3, 10_000, ("linear", 0), (0.0, False)),
}
MOCO = {  # MoCo v3: base rate 1.5e-4 x 16; 40 epochs; its linear evaluation; DeiT's 5e-4 x 2
    "pretrain": (4096, 300, "adamw", 2.4e-3, 12_480, ("cosine", 0), (0.1, True)),
    "probe": (1024, 90, "sgd", 4.0, 0, ("cosine", 0), (0.0, False)),
    "finetune": (1024, 150, "adamw", 1e-3, 6_255, ("cosine", 1e-5), (0.05, False)),
}
MIXER = {"supervised": (4096, 300, "adamw", 1e-3, 10_000, ("linear", 1e-5), (0.1, False))}  # big_vision
GMLP = {"supervised": (4096, 300, "adamw", 1e-3, 10_000, ("cosine", 0), (0.05, False))}
CIFAR = {"finetune": (1024, 100, "adamw", 6e-4, 144, ("linear", 0), (0.0, False))}  # 3e-4 per 512
BACKBONES = {
    "sparse_s": "sparse_mlp_s16",
    "sparse_b": "sparse_mlp_b16",
    "sparse_l": "sparse_mlp_l16",
    "mixer_s": "mixer_s16",
    "mixer_b": "mixer_b16",
    "mixer_l": "mixer_l16",
    "vit_s": "vit_s16",
    "vit_b": "vit_b16",
}

# recipe -> (model, data, {stage: (batch, epochs, optimizer, peak rate, warm-up steps, decay to the last rate, weight
# decay, of vectors too)})
PAPERS = {
    **{f"{name}_moco_lamb": (model, "imagenet", SPARSE_MLP) for name, model in BACKBONES.items()},
    **{f"{name}_moco_adamw": (model, "imagenet", MOCO) for name, model in BACKBONES.items()},
    "sparse_b_finetune_imagenet": ("sparse_mlp_b16", "imagenet", {"finetune": SPARSE_MLP["finetune"]}),
    "sparse_b_finetune_cifar10": ("sparse_mlp_b16", "cifar10", CIFAR),
    "sparse_b_finetune_cifar100": ("sparse_mlp_b16", "cifar100", CIFAR),
    "sparse_b_probe": ("sparse_mlp_b16", "imagenet", {"probe": MOCO["probe"]}),
    "mixer_b_supervised": ("mixer_b16", "imagenet", MIXER),
    "mixer_l_supervised": ("mixer_l16", "imagenet", MIXER),
    "vmoe_s32_supervised": (
        "vmoe_s32_last2",
        "imagenet",
        {"supervised": (8192, 300, "adamw", 3e-3, 10_000, ("linear", 1e-5), (0.1, False))},
    ),
    "gmlp_ti_supervised": ("gmlp_ti16", "imagenet", GMLP),
    "gmlp_s_supervised": ("gmlp_s16", "imagenet", GMLP),
    "gmlp_b_supervised": ("gmlp_b16", "imagenet", GMLP),
    "resmlp_s24_supervised": (
        "resmlp_s24",
        "imagenet",
        {"supervised": (1024, 400, "lamb", 5e-3, 6_255, ("cosine", 1e-5), (0.2, False))},
    ),
    "widenet_b_supervised": (
        "widenet_b16",
        "imagenet",
        {"supervised": (4096, 300, "lamb", 0.01, 9_360, ("linear", 1e-5), (0.1, True))},  # its released code
    ),
}
papers = pytest.mark.parametrize("name", PAPERS)


def training(recipe):
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainingStage)}


def test_every_recipe_is_ours_or_in_the_table():
    others = {name for name in RECIPES.names() if load_recipe(name).is_text} - OURS  # see test_shipped_text_recipes
    assert set(RECIPES.names()) - others == OURS | PAPERS.keys()


@papers
def test_numbers_are_the_papers(name):
    recipe, (model, data, stages) = load_recipe(name), PAPERS[name]
    assert recipe.model["name"] == model
    assert recipe.data.train[0].path == f"data/{data}/train" and recipe.data.val[0].path == f"data/{data}/val"
    assert recipe.data.crop_fraction == (0.9 if model.startswith("resmlp") else 0.875)
    assert training(recipe).keys() == stages.keys()
    for stage_name, (batch, epochs, optimizer, peak, warmup, decay, weight_decay) in stages.items():
        stage = recipe.stages[stage_name]
        own = stage.optimizer
        assert (stage.batch_size, stage.epochs, own.name) == (batch, epochs, optimizer)
        assert (own.decay, own.final_lr) == decay
        assert own.peak_lr(stage.batch_size) == pytest.approx(peak)
        assert round(own.warmup_epochs * (IMAGES[data] // batch)) == warmup
        assert (own.weight_decay, not own.exempt_vectors) == weight_decay


def test_the_two_settings_of_moco_differ_where_the_papers_do():
    lamb, adamw = (load_recipe(f"sparse_b_moco_{name}").stages["pretrain"] for name in ("lamb", "adamw"))
    assert (lamb.temperature, adamw.temperature) == (1.0, 0.2)
    assert [bool(stage.views[0].rand_augment) for stage in (lamb, adamw)] == [True, False]
    for stage in (lamb, adamw):
        assert (stage.momentum, stage.hidden, stage.dim, stage.freeze_patch) == (0.99, 4096, 256, True)
        assert [(v.jitter.p, v.grayscale, v.blur.p, v.solarize) for v in stage.views] == [
            (0.8, 0.2, 1.0, 0.0),
            (0.8, 0.2, 0.1, 0.2),
        ]
        assert stage.knn_every_epochs
    drop_path = {name: load_recipe(f"sparse_b_moco_{name}") for name in ("lamb", "adamw")}
    assert (drop_path["lamb"].spec.drop_path, drop_path["adamw"].spec.drop_path) == (0.1, 0.0)
    assert drop_path["adamw"].stages["finetune"].drop_path == 0.1
    policies = [drop_path[name].stages["finetune"].view.rand_augment for name in ("lamb", "adamw")]
    assert [(p.policy, p.ops, p.magnitude) for p in policies] == [("deit", 2, 9)] * 2


def test_what_else_the_supervised_recipes_state():
    mixer, vmoe, widenet = (load_recipe(f"{n}_supervised") for n in ("mixer_b", "vmoe_s32", "widenet_b"))
    spec = vmoe.spec
    assert (spec.moe_c.experts, spec.moe_c.top_k, spec.moe_placement) == (8, 2, "last2")
    assert (spec.dropout, spec.moe_c.dropout, spec.drop_path) == (0, 0.2, 0)
    assert (vmoe.moe.capacity_factor_c, vmoe.moe.group_images) == (1.05, 8)
    assert (widenet.moe.capacity_factor_c, widenet.moe.balance, widenet.spec.dropout) == (1.2, "switch", 0.1)
    stages = [r.stages["supervised"] for r in (mixer, vmoe, widenet)]
    policies = [stage.view.rand_augment for stage in stages]
    assert [(p.policy, p.ops, p.magnitude) for p in policies] == [("big_vision", 2, m) for m in (15, 10, 15)]
    assert [stage.mix.mixup for stage in stages] == [0.5, 0.2, 0.5]
    assert [stage.loss for stage in stages] == ["sigmoid", "sigmoid", "softmax"]
    gmlp = [load_recipe(f"gmlp_{size}_supervised") for size in ("ti", "s", "b")]
    assert [r.spec.drop_path for r in gmlp] == [0, 0.05, 0.2]
    assert {r.stages["supervised"].view.auto_augment for r in gmlp} == {"original"}
    mix = gmlp[0].stages["supervised"].mix
    assert (mix.mixup, mix.cutmix, gmlp[0].stages["supervised"].optimizer.eps) == (0.8, 1.0, 1e-6)


# ---- as `train.py --check` resolves them


def index(images, classes):
    """An index of as many samples as the data set has, all of label 0."""
    column = np.zeros(images, dtype=np.int64)
    one = Shard("a.tar", "a.tar", 1, "0" * 64, np.zeros(images, dtype="S1"), column, column, column)
    return Index("data", [str(n) for n in range(classes)], [one])


@papers
@pytest.mark.parametrize("nodes", [1, 8])
def test_it_resolves_on_whole_machines_of_8_gpus(name, nodes, monkeypatch):
    _, data, stages = PAPERS[name]
    recipe = load_recipe(name)
    monkeypatch.setattr(job.sources, "open_sources", lambda section, _: [index(IMAGES[data], section.classes)])
    monkeypatch.setattr(job.class_checks, "check_start", lambda *stage: [])  # the weights are nowhere
    json = str(ROOT / "ds_configs" / "moe.json")
    resolved = job.resolve(name, json, ["data.workers=0"], None, "never", world=8 * nodes)
    for stage, (batch, epochs, *_) in stages.items():
        share = resolved.batches[stage]
        assert share.micro * share.accumulation * 8 * nodes == batch
        assert share.micro % recipe.moe.group_images == 0
        assert resolved.steps(stage) == epochs * (IMAGES[data] // batch)
        assert f"stage {stage}: {resolved.steps(stage)} steps of {batch} images" in plan(resolved)


# ---- what their heads say


@papers
@pytest.mark.long
def test_the_command_in_its_head_fits_into_8_gpus_of_80_gb(name, monkeypatch):
    _fits(name, monkeypatch)


def test_the_command_of_sparse_b_fits_into_8_gpus_of_80_gb(monkeypatch):
    _fits("sparse_b_moco_adamw", monkeypatch)


def _fits(name, monkeypatch):
    _, data, _ = PAPERS[name]
    monkeypatch.setattr(job.sources, "open_sources", lambda section, _: [index(IMAGES[data], section.classes)])
    monkeypatch.setattr(job.class_checks, "check_start", lambda *stage: [])  # the weights are nowhere
    config = re.search(r"--num_gpus 8 train.py .*--ds_config (\S+)", head(name))[1]
    resolved = job.resolve(name, str(ROOT / config), ["data.workers=0"], None, "never", world=8, gpu=True)
    stages = memory.estimate(resolved)
    memory.check(resolved, stages, 80 * 10**9)
    assert not any("WARNING" in line for line in memory.lines(stages, 80 * 10**9))
    assert resolved.ds_config.precision == "bf16"


@cache
def head(name):
    lines = (RECIPES.folder / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#"))


@pytest.mark.parametrize("name", RECIPES.names())
def test_the_command_in_its_head_is_one_that_runs_it(name):
    commands = [line for line in head(name).splitlines() if "train.py" in line]
    assert len(commands) == 1
    args = flags.parse(shlex.split(commands[0].partition("train.py")[2]))
    assert args.recipe == name
    assert (ROOT / args.ds_config).is_file()


@papers
def test_the_overrides_in_its_head_land(name):
    overrides = re.findall(r"--set (\S+)", head(name))
    assert bool(overrides) == ("Another run or model" in head(name))
    load_recipe(name, overrides)


@papers
def test_its_head_names_a_target_and_counts_its_macs(name):
    """MACs: of one image, times images, times what an image goes through."""
    text, recipe = head(name), load_recipe(name)
    assert "Target: " in text
    total, each, images = re.search(r"(\d\.\de\d\d) MACs[^:]*: ([\d.]+) G x (\d+) M images", text).groups()
    per_image = cost.cost(recipe.spec).macs
    assert f"{per_image / 1e9:.2f}" == each
    stage = next(iter(training(recipe).values()))
    assert round(stage.epochs * IMAGES[PAPERS[name][1]] / 1e6) == int(images)
    times = 8 if isinstance(stage, Pretrain) else 1 if stage.kind == "probe" else 3
    assert f"{times * per_image * stage.epochs * IMAGES[PAPERS[name][1]]:.1e}".replace("e+", "e") == total


@papers
def test_classifiers_are_tested_once_more_at_the_end(name):
    recipe = load_recipe(name)
    last = list(recipe.stages.values())[-1]
    assert isinstance(last, Evaluate) or name == "sparse_b_probe"
