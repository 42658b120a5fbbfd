"""The real train.py on emulated GPUs: CUDA and NCCL would refuse nothing in any stage, precision or topology."""

import json

import pytest

from tests.gpu_emulated.runs import DIGITS, OPTIMIZER, STAGES, TRANSFORMER, answers_recipe, recipe, text_recipe, train
from tests.helpers import records

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]  # half a minute each on idle cores
ZERO = {stage: {"zero_optimization": {"stage": stage}, "gradient_clipping": 1.0} for stage in (0, 1, 2)}
PRECISIONS = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}, "fp16": {"fp16": {"enabled": True}}}
EXPERTS = {"moe_c": {"experts": 4, "hidden": 24}}
MODELS = {
    "V-MoE": {"name": "vmoe_s32_every2", **TRANSFORMER, "channel_hidden": 32, **EXPERTS},
    "WideNet": {"name": "widenet_b16", **TRANSFORMER, **EXPERTS},
    "gMLP": {"name": "gmlp_ti16", **{k: v for k, v in TRANSFORMER.items() if k != "heads"}, "hidden": 48},
}


def check(result, folder, stages):
    assert result.code == 0, result.output
    assert "a GPU would refuse" not in result.output
    done = json.loads((folder / "run/summary.json").read_text())["stages"]
    assert [stage["name"] for stage in done] == list(stages)


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 0), ("fp16", 1)])
def test_all_stages_on_one_rank(workplace, precision, zero):
    result = train(workplace, recipe(DIGITS, *STAGES), ds=ZERO[zero] | PRECISIONS[precision])
    check(result, workplace, STAGES)


@pytest.mark.parametrize(("precision", "zero", "ep_size"), [("fp16", 2, 2), ("bf16", 1, 1), ("fp32", 0, 2)])
def test_all_stages_on_two_ranks(workplace, precision, zero, ep_size):
    made = recipe(DIGITS, *STAGES, moe={"ep_size": ep_size})
    result = train(workplace, made, ds=ZERO[zero] | PRECISIONS[precision], ranks=2)
    check(result, workplace, STAGES)


def test_lamb_accumulation_and_resume(workplace):
    """A run that goes on after a restart, with everything that a checkpoint holds brought back to the device."""
    made = recipe(DIGITS, "pretrain", "finetune")
    made["stages"]["pretrain"]["optimizer"] = OPTIMIZER | {"name": "lamb"}
    made["stages"]["finetune"]["optimizer"] = OPTIMIZER | {"name": "lamb"}
    ds = ZERO[2] | PRECISIONS["bf16"] | {"gradient_accumulation_steps": 2}
    first = train(workplace, made, ds=ds, steps=2)
    check(first, workplace, ["pretrain", "finetune"])
    again = train(workplace, made, ds=ds, steps=4)
    assert again.code == 0, again.output
    assert "resuming" in again.output
    assert records.of_steps(workplace / "run")[-1]["step"] > 4


@pytest.mark.parametrize("name", MODELS)
def test_other_families(workplace, name):
    made = recipe(MODELS[name], "finetune", "evaluate")
    made["stages"]["finetune"]["kind"] = "supervised"  # from scratch
    result = train(workplace, made, ds=ZERO[2] | PRECISIONS["bf16"])
    check(result, workplace, ["finetune", "evaluate"])


TEXT = [
    ("amlp_text", "fp16", 1, 1),
    ("bert", "fp32", 0, 1),
    ("sparse_gmlp_text", "bf16", 2, 2),
    ("sparse_blocks", "fp32", 1, 2),
]
"""Family, precision, ZeRO stage, and ranks, over which experts are spread."""


@pytest.mark.parametrize(("family", "precision", "zero", "ranks"), TEXT)
def test_text(workplace, family, precision, zero, ranks):
    made = text_recipe(workplace, family)
    made["moe"]["ep_size"] = ranks if family.startswith("sparse") else 1
    result = train(workplace, made, ds=ZERO[zero] | PRECISIONS[precision], ranks=ranks)
    check(result, workplace, made["stages"])


def test_answers_to_questions(workplace):
    made = answers_recipe(workplace)
    check(train(workplace, made, ds=ZERO[2] | PRECISIONS["bf16"]), workplace, made["stages"])


@pytest.mark.parametrize(("precision", "ranks"), [("bf16", 2)])
def test_zero_3_without_experts(workplace, precision, ranks):
    """All stages, with every parameter partitioned."""
    zero = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}, "gradient_clipping": 1.0}
    result = train(workplace, recipe(MODELS["gMLP"], *STAGES), ds=zero | PRECISIONS[precision], ranks=ranks)
    check(result, workplace, STAGES)
