"""Recipes: every mistake is one line that names its source, the key and the fix; good overrides land where they say."""

import pytest
import yaml

from sparse_mlp_ds.config.arguments import DEFAULT_RECIPE
from sparse_mlp_ds.config.loading import RECIPES, load_recipe
from sparse_mlp_ds.config.stages import Evaluate, Finetune, Pretrain
from sparse_mlp_ds.errors import UserError

STAGE = "stages.pretrain"
VIEW = "stages.pretrain.views.0"


def problems(*overrides, recipe=DEFAULT_RECIPE):
    with pytest.raises(UserError) as error:
        load_recipe(str(recipe), overrides)
    return str(error.value).splitlines()


# override -> (key that is named, what is said about it)
BAD_VALUES = {
    "train.sed=1": ("train.sed", "unknown key in train; did you mean 'seed'?"),
    "tain.seed=1": ("tain", "unknown key; did you mean 'train'?"),
    "train.extra.deep=1": (
        "train.extra",
        "unknown key in train; valid: compile, loss_spike, max_skipped, max_steps, seed, timeout_seconds",
    ),
    "train.compile=always": ("train.compile", "'auto', 'on' or 'off', not 'always'"),
    "data.class=3": ("data.class", "did you mean 'classes'?"),
    "model.name=mixer_s61": ("model", "no model 'mixer_s61'; did you mean 'mixer_s16'?"),
    "model.nam=x": ("model.nam", "did you mean 'name'?"),
    "model.moe_s.expert=4": ("model.moe_s.expert", "unknown key in model.moe_s; did you mean 'experts'?"),
    "model={name: vit_b16, hads: 4}": ("model.hads", "unknown key in model; did you mean 'heads'?"),
    "model.moe_s.top_k=9": ("model.moe_s", "top_k 9 exceeds experts 4; lower top_k or add experts"),
    "model.patch_size=5": ("model", "patch_size 5 does not divide image_size 16"),
    "model.moe_s=null": ("model", "sparse_blocks need moe_s, moe_c, sparse_tokens and sparse_width"),
    "moe.priority=size": ("moe.priority", "'random' or 'expert_choice', not 'size'"),
    "moe.capacity_factor_s=0": ("moe.capacity_factor_s", "greater than 0, not 0"),
    "moe.group_images=8.5": ("moe.group_images", "valid integer"),
    f"{STAGE}.kind=pretran": (STAGE, "unknown kind 'pretran'; did you mean 'pretrain'?"),
    f"{STAGE}.kind=7": (
        STAGE,
        "unknown kind '7'; valid: evaluate, finetune, finetune_span, finetune_text, mlm, pretrain",
    ),
    f"{STAGE}={{}}": (STAGE, "kind is missing; valid: evaluate, finetune, finetune_span, finetune_text"),
    f"{STAGE}.momentum=1": (f"{STAGE}.momentum", "less than 1, not 1"),
    f"{STAGE}.optimizer.wamup_epochs=4": (f"{STAGE}.optimizer.wamup_epochs", "did you mean 'warmup_epochs'?"),
    f"{STAGE}.optimizer.name=adam": (f"{STAGE}.optimizer.name", "'adamw', 'sgd', 'lamb' or 'lars', not 'adam'"),
    f"{STAGE}.optimizer.decay=step": (f"{STAGE}.optimizer.decay", "'cosine' or 'linear', not 'step'"),
    f"{STAGE}.optimizer.eps=0": (f"{STAGE}.optimizer.eps", "greater than 0, not 0"),
    f"{STAGE}.optimizer={{}}": (f"{STAGE}.optimizer.base_lr", "required, but not given; add it"),
    f"{VIEW}.flip=1.25": (f"{VIEW}.flip", "less than or equal to 1, not 1.25"),
    f"{VIEW}.blur.sigmas=1": (f"{VIEW}.blur.sigmas", f"unknown key in {VIEW}.blur; did you mean 'sigma'?"),
    f"{VIEW}.crop=[0.1, 1]": (f"{VIEW}.crop", "did you mean 'crop_scale'?"),
    "stages.finetune.layer_decay=0": ("stages.finetune.layer_decay", "greater than 0, not 0"),
    f"{STAGE}.contrast=all": (f"{STAGE}.contrast", "'batch' or 'micro_batch', not 'all'"),
    f"{STAGE}.temperature=0": (f"{STAGE}.temperature", "greater than 0, not 0"),
    "stages.finetune.init=scratch": ("stages.finetune.init", "did you mean 'init_from'?"),
    "stages.finetune.loss=sigmod": ("stages.finetune.loss", "'softmax' or 'sigmoid', not 'sigmod'"),
    "stages.finetune={kind: supervised, loss: sigmoid, epochs: 1, batch_size: 8, view: {}, optimizer: {base_lr: 1}}": (
        "stages.finetune",
        "loss sigmoid has no label_smoothing; set label_smoothing: 0, or loss: softmax",
    ),
    "stages.finetune.drop_path=1": ("stages.finetune.drop_path", "less than 1, not 1"),
    "stages.finetune.view.rand_augment={magnitude: 31}": (
        "stages.finetune.view.rand_augment.magnitude",
        "less than or equal to 30, not 31",
    ),
    "model.moe_c.dropout=1": ("model.moe_c.dropout", "less than 1"),
    "stages.evaluate.epochs=3": (
        "stages.evaluate.epochs",
        "unknown key in stages.evaluate; valid: batch_size, capacity_factor, kind, priority",
    ),
    "log.wandb.mode=on": ("log.wandb.mode", "'disabled', 'offline' or 'online', not True"),
    "checkpoint.every_steps=0": ("checkpoint.every_steps", "greater than 0, not 0"),
    "checkpoint.mirror=s3//bucket": ("checkpoint.mirror", "expected a URL such as s3://bucket/path, not 's3//bucket'"),
    "data=null": ("data", "not None"),
    "stages={}": ("stages", "at least 1 item"),
}


@pytest.mark.parametrize("override, key, said", [(o, *rest) for o, rest in BAD_VALUES.items()], ids=BAD_VALUES.keys())
def test_a_bad_override_is_one_line_with_its_key_and_the_fix(override, key, said):
    lines = problems(override)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"--set {key}: ")
    assert said in lines[0]


BAD_OVERRIDES = {
    "train": "write it as dotted.key=value",
    "=1": "write it as dotted.key=value",
    "train.seed=[": "the value is not valid YAML; quote it",
    f"{VIEW[:-1]}5.flip=0": "'5' is not an item of that list; items are 0 to 1",
    f"{VIEW[:-1]}last.flip=0": "'last' is not an item of that list; items are 0 to 1",
    "data.mean.3=0.5": "'3' is not an item of that list; items are 0 to 2",
    "name.x=1": "'name' holds a value, not a section; remove '.x'",
    "name.x.y=1": "the key goes deeper than the recipe; remove '.x' and what follows",
}


@pytest.mark.parametrize("override, said", BAD_OVERRIDES.items())
def test_an_override_that_cannot_be_applied_is_quoted(override, said):
    assert problems(override)[0].startswith(f"--set {override}: {said}")


def test_every_problem_gets_its_line_and_its_own_source(tmp_path):
    tree = yaml.safe_load((RECIPES.folder / "digits.yaml").read_text())
    tree["moe"]["group_image"] = 4
    tree["stages"]["finetune"]["label_smoothing"] = 1.5
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    lines = problems("train.seed=-1", "checkpoint.kep=1", recipe=path)
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(
        ["--set train.seed", "--set checkpoint.kep", str(path), str(path)]
    )
    assert f"{path}: moe.group_image: unknown key in moe; did you mean 'group_images'?" in lines
    assert any(line.startswith(f"{path}: stages.finetune.label_smoothing: ") for line in lines)


EVALUATE_FIRST = """
name: x
data: {train: a, val: b, classes: 2}
model: {name: mixer_digits}
stages: {test: {kind: evaluate}}
"""

BAD_FILES = {
    "syntax": ("name: [x", ["not valid YAML, fix it", "line 1"]),
    "binary": (b"\xff\xfe\x81", ["not UTF-8 at byte 0; save it as UTF-8"]),
    "list": ("- name: x", ["a recipe is a mapping of sections; start from a copy of a shipped one"]),
    "empty": ("", ["a recipe is a mapping of sections"]),
    "no weights": (EVALUATE_FIRST, ["the first stage is an evaluate stage", "put a training stage first"]),
    "name": (EVALUATE_FIRST.replace("name: x", "name: a/b"), ["name: ", "not 'a/b'"]),
    "model": (
        EVALUATE_FIRST.replace("mixer_digits", "mixer_b61"),
        ["model: ", "no model 'mixer_b61'; did you mean 'mixer_b16'?"],
    ),
}


@pytest.mark.parametrize("content, said", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_one_line_that_names_it(tmp_path, content, said):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lines = problems(recipe=path)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{path}: ")
    assert all(part in lines[0] for part in said), lines[0]


def test_missing_sections_are_all_named(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text("name: x\n")
    assert problems(recipe=path) == [
        f"{path}: {key}: required, but not given; add it" for key in ("data", "model", "stages")
    ]


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    assert problems(recipe="digit") == ["--recipe digit: no such recipe; did you mean 'digits'?"]


def test_a_folder_is_not_a_recipe_but_a_run_has_one(tmp_path):
    assert problems(recipe=tmp_path) == [
        f"--recipe {tmp_path}: is a folder, not a recipe; give the name of a shipped one, or a .yaml file"
    ]
    (tmp_path / "config.yaml").write_text("name: x\n")
    assert problems(recipe=tmp_path) == [f"--recipe {tmp_path}: is a folder, not a recipe; give {tmp_path}/config.yaml"]


def test_a_missing_file_says_so(tmp_path):
    path = tmp_path / "gone.yaml"
    assert problems(recipe=path) == [
        f"--recipe {path}: No such file or directory; give a recipe's path or a shipped name"
    ]


GOOD = {
    "train.seed=7": (lambda r: r.train.seed, 7),
    "train.max_steps=3": (lambda r: r.train.max_steps, 3),
    "train.compile=on": (lambda r: r.train.compile, "on"),  # which YAML reads as true
    "train.compile=off": (lambda r: r.train.compile, "off"),
    f"{STAGE}.optimizer.base_lr=1e-3": (lambda r: r.stages["pretrain"].optimizer.base_lr, 0.001),
    f"{STAGE}.optimizer.betas=[0.8, 0.95]": (lambda r: r.stages["pretrain"].optimizer.betas, (0.8, 0.95)),
    "stages.pretrain.views.1.flip=0.25": (lambda r: [v.flip for v in r.stages["pretrain"].views], [0.0, 0.25]),
    f"{VIEW}.blur=null": (lambda r: [v.blur is None for v in r.stages["pretrain"].views], [True, False]),
    "data.mean.1=0.5": (lambda r: r.data.mean, (0.305, 0.5, 0.305)),
    "data.train=/elsewhere/a=b": (lambda r: r.data.train[0].path, "/elsewhere/a=b"),
    "model.moe_s.experts=2": (lambda r: (r.spec.moe_s.experts, r.spec.moe_s.hidden), (2, 128)),
    "model.name=mixer_b16": (lambda r: (r.spec.width, r.spec.sparse_blocks), (768, 0)),
    "moe.capacity_factor_c=null": (lambda r: (r.moe.capacity_factor_s, r.moe.capacity_factor_c), (1.05, None)),
    "moe.ep_size=2": (lambda r: r.moe.ep_size, 2),
    "log.wandb={mode: offline, entity: me}": (lambda r: (r.log.wandb.mode, r.log.wandb.entity), ("offline", "me")),
    "stages.again={kind: evaluate}": (lambda r: list(r.stages), ["pretrain", "finetune", "evaluate", "again"]),
}


@pytest.mark.parametrize("override, value, expected", [(o, *rest) for o, rest in GOOD.items()], ids=GOOD.keys())
def test_a_good_override_lands(override, value, expected):
    assert value(load_recipe(DEFAULT_RECIPE)) != expected
    assert value(load_recipe(DEFAULT_RECIPE, [override])) == expected


def test_the_last_of_two_overrides_wins():
    assert load_recipe(DEFAULT_RECIPE, ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize("name", RECIPES.names())
def test_a_shipped_recipe_loads_by_name_and_by_path(name):
    recipe = load_recipe(name)
    assert recipe == load_recipe(str(RECIPES.folder / f"{name}.yaml"))
    assert recipe.name == name
    assert not isinstance(next(iter(recipe.stages.values())), Evaluate)


def test_the_kinds_of_stages_are_told_apart():
    stages = load_recipe(DEFAULT_RECIPE).stages
    assert [type(stage) for stage in stages.values()] == [Pretrain, Finetune, Evaluate]


def _write(folder, file, **tree):
    path = folder / f"{file}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_recipe_may_be_laid_over_another(tmp_path):
    lower = _write(tmp_path, "lower", base="digits", name="lower", train={"seed": 5})
    stages = {"evaluate": None, "pretrain": {"momentum": 0.5, "optimizer": {"weight_decay": 0.25}}}
    upper = _write(tmp_path, "upper", base=lower.name, model={"drop_path": 0.1}, stages=stages)
    recipe, digits = load_recipe(str(upper), ["stages.pretrain.dim=8"]), load_recipe("digits")
    assert (recipe.name, recipe.train.seed, recipe.model) == ("lower", 5, digits.model | {"drop_path": 0.1})
    assert list(recipe.stages) == ["pretrain", "finetune"]
    changed = {
        "momentum": 0.5,
        "dim": 8,
        "optimizer": digits.stages["pretrain"].optimizer.model_copy(update={"weight_decay": 0.25}),
    }
    assert recipe.stages["pretrain"] == digits.stages["pretrain"].model_copy(update=changed)
    assert recipe.stages["finetune"] == digits.stages["finetune"]


ORDERS = {
    # stages that a recipe lists over a base of pretrain, finetune and evaluate -> the order of all
    ("evaluate",): ["pretrain", "finetune", "evaluate"],
    ("finetune", "pretrain"): ["finetune", "evaluate", "pretrain"],
    ("new", "pretrain"): ["new", "pretrain", "finetune", "evaluate"],
    ("pretrain", "new", "finetune"): ["pretrain", "new", "finetune", "evaluate"],
    ("pretrain", "new"): ["pretrain", "finetune", "evaluate", "new"],
    ("new", "-pretrain"): ["new", "finetune", "evaluate"],
}


@pytest.mark.parametrize("listed, order", ORDERS.items(), ids=map(str, ORDERS))
def test_the_order_of_listed_stages_holds(tmp_path, listed, order):
    new = {"kind": "supervised", "epochs": 1, "batch_size": 8, "optimizer": {"base_lr": 1.0}, "view": {}}
    finetune = {"init_from": {"path": "weights.npz"}}  # which may come first, then
    stages = {"new": new, "finetune": finetune, "evaluate": {"batch_size": 8}, "pretrain": {"epochs": 3}}
    over = {name.lstrip("-"): None if name[0] == "-" else stages[name] for name in listed}
    path = tmp_path / "over.yaml"
    path.write_text(yaml.safe_dump({"base": "digits", "stages": over}, sort_keys=False))
    fresh = [] if "finetune" in listed else ["stages.finetune.init_from.path=weights.npz"]
    assert list(load_recipe(str(path), fresh).stages) == order


def test_a_stage_that_starts_from_weights_does_not_come_first(tmp_path):
    first = {"kind": "finetune", "epochs": 1, "batch_size": 8, "optimizer": {"base_lr": 1.0}, "view": {}}
    none = {"finetune": None, "evaluate": None, "pretrain": None}
    path = _write(tmp_path, "over", base="digits", stages=none | {"first": first})
    (line,) = problems(recipe=path)
    assert "stages.first: a finetune stage starts from weights, and there are none before it; set its init_from" in line
    load_recipe(str(path), ["stages.first.init_from.path=weights.npz"])


def test_a_bad_base_is_one_line(tmp_path):
    one = _write(tmp_path, "one", base="two.yaml")
    _write(tmp_path, "two", base="one.yaml")
    assert problems(recipe=one) == [
        f"{tmp_path}/two.yaml: base: one.yaml is based on this recipe; remove one of the two"
    ]
    assert problems(recipe=_write(tmp_path, "three", base="digit")) == [
        f"{tmp_path}/three.yaml: base digit: no such recipe; did you mean 'digits'?"
    ]
    assert problems(recipe=_write(tmp_path, "four", base=3))[0].startswith(f"{tmp_path}/four.yaml: base: expected a")
    missing = problems(recipe=_write(tmp_path, "five", base="nowhere.yaml"))
    assert missing == [f"{tmp_path}/five.yaml: base {tmp_path}/nowhere.yaml: No such file or directory; "
                       "give a recipe's path or a shipped name"]  # fmt: skip
