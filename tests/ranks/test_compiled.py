"""Training with compiled blocks: few graphs in a whole run, and the steps that would be taken without them."""

import json
import sys

import pytest
import torch
import yaml

from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train import compiled
from tests.gpu_emulated.runs import DIGITS, STAGES, finish, recipe, text_recipe
from tests.helpers import harness, tiny

BF16 = {"bf16": {"enabled": True}}
DENSE, SPARSE_WHOLE, SPARSE_PARTS = 1, 1, 2
"""Graphs of a block: experts in float32 run in a loop, and only both re-represent layers are compiled."""
EXPECTED = {
    "pretrain": 3 * (DENSE + SPARSE_WHOLE),  # online network, momentum encoder, k-NN of the online network
    "probe": 2 * (DENSE + SPARSE_PARTS),  # the frozen backbone in float32, on batches for training and for k-NN
    "finetune": DENSE + SPARSE_WHOLE + DENSE + SPARSE_PARTS,  # the classifier, and its average in float32
    "evaluate": DENSE + SPARSE_PARTS,
}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_whole_run_makes_few_graphs_and_none_after_the_first_step(tmp_path):
    """An epoch of each stage, which leaves images over that fill no batch; the last batch of evaluation is short."""
    digits.make(tmp_path / "digits")
    made = recipe(DIGITS, *STAGES, evaluate={"batch_size": 256})
    for stage in ("pretrain", "probe", "finetune"):
        made["stages"][stage]["batch_size"] = 128
    phases, starts = _phases(tmp_path, made), {}
    for phase in phases:
        starts.setdefault(phase.get("stage"), phase["graphs"])
    ends = [*starts.values()][1:]
    assert {name: end - start for (name, start), end in zip(starts.items(), ends, strict=False)} == EXPECTED
    for name in ("pretrain", "probe", "finetune"):
        steps = [phase for phase in phases if phase.get("stage") == name and phase["phase"] == "data"]
        assert len(steps) == 11
        assert steps[1]["graphs"] == steps[-1]["graphs"], f"{name}: compiled again"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["sparse_gmlp_text", "sparse_blocks"])
def test_stages_of_text_make_no_graph_after_the_first_step(tmp_path, family):
    made = text_recipe(tmp_path, family)
    made["stages"]["mlm"]["val_every_steps"] = None
    phases = _phases(tmp_path, made)
    for name in ("mlm", "classes"):
        graphs = [phase["graphs"] for phase in phases if (phase.get("stage"), phase["phase"]) == (name, "data")]
        assert len(graphs) == 6 and 0 < graphs[1] == graphs[-1], f"{name}: compiled again"


def _phases(folder, made):
    """Run a recipe with compiled blocks in bf16, and return its phases with the numbers of graphs by then."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    ds = {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0} | BF16
    (folder / "ds.json").write_text(json.dumps(ds))
    command = [sys.executable, "-m", "tests.helpers.compiled_run", "graphs.json"]
    result = finish([*command, "--recipe", "recipe.yaml", "--ds_config", "ds.json", "--out", "run"], folder, 500)
    assert result.code == 0, result.output
    assert "blocks compiled" in result.output and "lru_cache" not in result.output
    found = json.loads((folder / "graphs.json").read_text())
    assert not found["breaks"]
    return found["phases"]


def _steps(zero: int, family: str, ep_size: int, ds: dict, compiles: bool) -> list[tuple[float, float, float]]:
    built = tiny.build_engine(ep_size, zero, family=family, **ds)
    compiled.BACKEND = "aot_eager"
    if compiles:
        compiled.compile_blocks([built.module])
        assert any(module._compiled_call_impl is not None for module in built.module.modules())
    return [tiny.step(built, number) for number in range(3)]


@pytest.mark.parametrize(
    ("zero", "family", "ep_size", "ds"), [(0, "sparse_mlp", 2, {}), (1, "vmoe", 2, BF16), (2, "mixer", 1, BF16)]
)
def test_steps_are_those_without_compilation(zero, family, ep_size, ds):
    """Also with experts on two ranks, whose rows travel outside of the graphs."""
    eager, graphs = (harness.run(2, _steps, zero, family, ep_size, ds, compiles) for compiles in (False, True))
    tolerance = 2e-2 if ds else 1e-4
    torch.testing.assert_close(torch.tensor(graphs), torch.tensor(eager), rtol=tolerance, atol=1e-4)
