"""Shipped sweeps: every run is a recipe that `train.py` takes, and is the setting that the paper's ablation names."""

import re
import shlex

import pytest

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.sweep.plan import SWEEPS, load, runs

COUNTS = {
    "experts_s": 3,
    "experts_c": 3,
    "top_k_s": 2,
    "top_k_c": 2,
    "position": 4,
    "rerepresent": 2,
    "skip_after_norm": 2,
    "which_moe": 3,
    "priority_capacity": 9,
    "noise_balance": 6,
    "cifar10_blocks": 16,
    "cifar10_moco": 6,
    "small_models": 70,
    "small_half_rate": 25,
    "small_short": 12,
    "small_long": 15,
    "small_regularization": 8,
    "small_rates": 8,
    "small_deep": 16,
    "small_choices": 29,
    "small_capacity": 21,
    "small_widths": 14,
    "small_upcycled": 9,
    "small_patches": 15,
    "small_patches_long": 12,
    "small_moco_rates": 10,
    "small_moco": 18,
    "small_moco_labels": 24,
    "digits_seeds": 10,
    "gmlp_gates": 6,
    "text_sst2": 30,
    "text_mnli": 30,
    "mlm_blocks": 42,
    "mlm_long": 12,
    "mlm_16_epochs": 15,
    "sst2_speeches": 12,
}
PARAMETERS = {  # sweep -> millions of each run, without the head
    "experts_s": [65.15, 69.98, 79.64],
    "experts_c": [69.98, 79.43, 98.34],
    "position": [59.11, 69.98, 69.98, 80.84],
    "rerepresent": [69.98, 89.57],
    "skip_after_norm": [69.98, 69.98],
}


def head(name):
    lines = (SWEEPS.folder / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def commands(name):
    return [shlex.split(line, comments=True)[1:] for line in head(name) if line.startswith("sparse-mlp-ds sweep")]


def test_all_of_them_are_in_the_table():
    assert set(SWEEPS.names()) == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_every_run_resolves(name):
    found = runs(load(name))
    assert load(name).name == name
    assert len(found) == COUNTS[name] == len({run.name for run in found})
    recipes = [run.recipe.model_dump_json(exclude={"name"}) for run in found]
    assert len(set(recipes)) == len(recipes)  # no two are the same


@pytest.mark.parametrize("name", PARAMETERS)
def test_their_models_have_the_sizes_that_the_papers_dimensions_give(name):
    sizes = [cost.cost(run.recipe.spec).params / 1e6 for run in runs(load(name))]
    assert sizes == pytest.approx(PARAMETERS[name], abs=0.005)


def test_the_routing_ablations_change_what_they_say():
    both = [(k, s) for s in ("s", "c") for k in (run.recipe.spec for run in runs(load(f"top_k_{s}")))]
    assert [getattr(spec, f"moe_{s}").top_k for spec, s in both] == [1, 2, 1, 2]
    assert [spec.moe_c.top_k for spec, s in both if s == "s"] == [2, 2]
    moe = [run.recipe.moe for run in runs(load("priority_capacity"))]
    assert {(m.priority, m.capacity_factor_s, m.capacity_factor_c) for m in moe} == {
        (priority, factor, factor) for priority in ("position", "importance", "random") for factor in (0.5, 1.05, 2.0)
    }
    kinds = [list(run.recipe.spec.experts) for run in runs(load("which_moe"))]
    assert kinds == [["moe_s", "moe_c"], ["moe_s"], ["moe_c"]]


@pytest.mark.parametrize("name", COUNTS)
def test_the_commands_in_its_head_list_its_runs(name, capsys):
    assert commands(name)[0] == ["sweep", name]
    for command in commands(name):
        args = main._parser().parse_args([*command, "--list"])
        args.run(args)
        listed = re.findall(r"^ *\d+  (?:to do|finished) +(\S+)$", capsys.readouterr().out, re.MULTILINE)
        assert len(listed) == COUNTS[name]


def test_a_smaller_recipe_takes_the_sweeps_place_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    from sparse_mlp_ds.sweep.gather import Gathered

    seen = []
    monkeypatch.setattr(Gathered, "write", lambda self: seen.append((self.sweep, self.runs, self.folder)) or ("", [""]))
    flags = ["--recipe", "cifar10_tiny_moco", "--ranks", "2", "--table"]
    args = main._parser().parse_args(["sweep", "experts_s", *flags])
    args.run(args)
    ((sweep, found, folder),) = seen
    assert (sweep.ranks, str(folder)) == (2, "runs/experts_s-cifar10_tiny_moco")
    assert [run.recipe.model["name"] for run in found] == ["sparse_mlp_t4"] * 3
    assert [run.recipe.spec.moe_s.experts for run in found] == [4, 8, 16]
