"""The benchmark for GPUs runs whole at toy size on any machine, so that no GPU time is lost to a mistake in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_train
from benchmarks.gpu_timing import Settings

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
QUICK = "steps,train,kernels,products,moe,bits,same,compiled,precisions,loader"


def run(tmp_path, *flags):
    """Return the exit code, what was printed, and the rows that were written."""
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(out), *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=560)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return done.returncode, done.stdout + done.stderr, rows


@pytest.mark.parametrize("sections", [QUICK, "works"])
def test_every_case_of_every_section_ends_with_figures(tmp_path, sections):
    code, said, rows = run(tmp_path, "--only", sections)
    assert code == 0, said
    assert {row["section"] for row in rows} == set(sections.split(","))
    assert not [row for row in rows if "failed" in row or "skipped" in row], said
    assert all(row["images_per_second"] > 0 for row in rows if row["section"] in ("steps", "train", "loader"))


def test_a_case_that_fails_is_said_and_costs_no_other_case(tmp_path):
    code, said, rows = run(tmp_path, "--only", "loader,products", "--data", str(tmp_path))  # no tars are there
    assert code == 1
    assert [row for row in rows if "failed" in row and row["section"] == "loader"]
    assert [row["section"] for row in rows if "failed" not in row].count("products") > 3
    assert "Traceback" in said


def test_no_case_is_begun_when_time_is_up(tmp_path):
    code, _, rows = run(tmp_path, "--only", "products", "--minutes", "0")
    assert code == 0
    assert rows and all("skipped" in row for row in rows)


@pytest.mark.parametrize(("recipe", "stage"), gpu_train.STEPS)
def test_the_real_recipes_resolve_on_the_digits(tmp_path, recipe, stage):
    """Their own batches would not fit into the digits, and `--toy` does not try them."""
    assert gpu_train._job(recipe, stage, Settings(False, 128, (), tmp_path)).batches[stage].total == 128
