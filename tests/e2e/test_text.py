"""From files of text to predictions, by the commands that docs/language.md names, under the real launcher."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.launcher import MOE, Launch
from tests.helpers.text_sets import LENGTH, VOCABULARY, sentence

PROGRAM = Path(sys.executable).with_name("sparse-mlp-ds")
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]
RECIPE = f"""
name: little
data: {{train: data/little/train, val: data/little/val, classes: 2, workers: 1}}
model: {{name: sparse_gmlp_text_speeches, length: {LENGTH}, vocabulary: {VOCABULARY}, width: 32, depth: 3, hidden: 64,
  moe_c: {{experts: 2, hidden: 32}}}}
moe: {{ep_size: auto, group_images: 8}}
stages:
  mlm:
    kind: mlm
    steps: 150
    batch_size: 32
    optimizer: {{name: adamw, base_lr: 8.0e-2, warmup_steps: 10, decay: linear}}
  perplexity: {{kind: evaluate}}
  finetune:
    kind: finetune_text
    steps: 30
    batch_size: 32
    optimizer: {{name: adamw, base_lr: 2.0e-2}}
  evaluate: {{kind: evaluate}}
"""


def _text(number):
    return f"{'the moon' if number % 2 else 'a tree'} {sentence(number, 6)}"


def _table(path, numbers):
    """Write texts, half of which speak of the moon, with their classes."""
    lines = [f"{_text(n)}\t{'sky' if n % 2 else 'earth'}" for n in numbers]
    path.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")


def _command(*words):
    """Run `sparse-mlp-ds`, and return what it printed."""
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the run runs/little has ended, on two ranks, its data in data/little."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "texts").mkdir()
    _table(folder / "texts/train.tsv", range(400))
    _table(folder / "texts/dev.tsv", range(1000, 1060))
    columns = ("--text", "sentence", "--label", "label", "--length", LENGTH, "--vocabulary", VOCABULARY)
    made = _command("shards", "make", "text", folder / "texts", folder / "data/little", *columns)
    assert "400 rows of 16 tokens" in made and "2 classes" in made
    (folder / "little.yaml").write_text(RECIPE)
    with Launch(folder, "--recipe", "little.yaml", "--ds_config", MOE) as launch:
        assert launch.wait() == 0, launch.output()
    return folder


@pytest.fixture(scope="module")
def masked(folder):
    """The exported masked language model."""
    _command("export", folder / "runs/little", folder / "masked", "--stage", "mlm")
    return folder / "masked"


@pytest.fixture(scope="module")
def metrics(folder):
    """What each stage of the run measured."""
    summary = json.loads((folder / "runs/little/summary.json").read_text())
    return {stage["name"]: stage["metrics"] for stage in summary["stages"]}


def test_two_ranks_learn_from_texts(metrics):
    assert metrics["perplexity"]["perplexity"] < VOCABULARY / 4
    assert metrics["evaluate"]["top1"] > 0.9, "the first words tell the class"


def test_figures_are_found_again_in_an_export(folder, masked, metrics):
    found = json.loads(_command("evaluate", masked, folder / "data/little", "--workers=0", "--json"))
    assert found["perplexity"] == pytest.approx(metrics["mlm"]["perplexity"], rel=1e-4)


def test_a_hidden_word_is_restored(masked):
    ((place,),) = [one["masks"] for one in json.loads(_command("predict", masked, "--text", "the[MASK] of", "--json"))]
    chances = [one["probability"] for one in place]
    assert len(chances) == 5 and chances == sorted(chances, reverse=True) and 0 < sum(chances) <= 1


def test_a_text_gets_its_class(folder):
    texts = [word for number in (2001, 2002) for word in ("--text", _text(number))]
    said = json.loads(_command("predict", folder / "runs/little", *texts, "--json"))
    assert [one["classes"][0]["name"] for one in said] == ["sky", "earth"]
