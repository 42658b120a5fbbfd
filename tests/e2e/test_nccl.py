"""Two GPUs under the real launcher: experts on both, rows between them over NCCL, a save and a resume."""

import json
from pathlib import Path

import pytest
import torch

from sparse_mlp_ds.checkpoints import manifest
from tests.helpers import records
from tests.helpers.launcher import Launch

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(GPUS < 2, reason=f"NCCL needs two GPUs, this machine has {GPUS}"),
]


def losses(folder: Path, out: str, stage: str, precision: str, *, steps: int, ep_size: int = 2) -> list[float]:
    """Train one stage of the digits up to a number of steps, from where `out` stands; return the loss of each step."""
    ds = folder / f"{precision}.json"
    switch = {"bf16": {"enabled": True}} if precision == "bf16" else {}
    ds.write_text(json.dumps(switch | {"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    settings = [f"train.max_steps={steps}", f"moe.ep_size={ep_size}", "checkpoint.every_steps=2", "log.every_steps=1"]
    settings += [f"stages.{name}=null" for name in {"pretrain", "finetune", "evaluate"} - {stage}]
    settings += [f"stages.{stage}.kind=supervised"] if stage == "finetune" else []  # from scratch
    changes = [argument for setting in settings for argument in ("--set", setting)]
    with Launch(folder, "--ds_config", str(ds), "--out", out, *changes) as launch:
        assert launch.wait() == 0, launch.output()
    taken = records.of_steps(folder / out)
    assert [record["step"] for record in taken] == list(range(1, steps + 1))
    return [record["loss"] for record in taken]


@pytest.mark.parametrize(("stage", "precision"), [("pretrain", "bf16"), ("finetune", "float32")])
def test_experts_on_two_gpus_train_save_and_resume(tmp_path, stage, precision):
    """A run that goes on from a checkpoint has the losses of one that never stopped, and of one without exchange."""
    whole = losses(tmp_path, "whole", stage, precision, steps=6)
    losses(tmp_path, "parts", stage, precision, steps=3)
    found, _ = manifest.newest(tmp_path / "parts/checkpoints")
    assert found and found.manifest["topology"]["ep_sizes"] == {"moe_s": 2, "moe_c": 2}
    assert sorted(found.manifest["files"]) == ["rank_00000.safetensors", "rank_00001.safetensors"]
    assert losses(tmp_path, "parts", stage, precision, steps=6) == pytest.approx(whole, rel=0.01)
    assert losses(tmp_path, "alone", stage, precision, steps=6, ep_size=1) == pytest.approx(whole, rel=0.01)
